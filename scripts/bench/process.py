"""Runs a program and says how long it took, how much memory it needed and when it printed a certain line."""

import os
import re
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = 1800
POLL_SECONDS = 0.05


class Failed(Exception):
    """A program did not do its work; the text says why."""


@dataclass
class Finished:
    """What a program left. `line_seconds`: from its start to the first line on stderr that matched."""

    stdout: str
    seconds: float
    peak_bytes: int
    line_seconds: float | None


class Lines(threading.Thread):
    """Reads a pipe to its end, and notes when a line first matches a pattern."""

    def __init__(self, pipe, pattern=None):
        super().__init__(daemon=True)
        self.pipe, self.pattern = pipe, pattern and re.compile(pattern)
        self.lines, self.matched_at = [], None
        self.start()

    def run(self):
        for line in self.pipe:
            if self.pattern and self.matched_at is None and self.pattern.search(line):
                self.matched_at = time.perf_counter()
            self.lines.append(line)

    def text(self):
        self.join()
        self.pipe.close()
        return "".join(self.lines)


class TreeMemory(threading.Thread):
    """The peak of the proportional set sizes of a process and its descendants, summed."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.peak, self.ended = pid, 0, threading.Event()
        self.start()

    def run(self):
        while not self.ended.wait(POLL_SECONDS):
            self.peak = max(self.peak, sum(proportional_bytes(pid) for pid in descendants(self.pid)))

    def stop(self):
        self.ended.set()
        self.join()
        return self.peak


def descendants(pid):
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found.extend(int(child) for child in children.read_text().split())
            except OSError:
                pass
    return found


def proportional_bytes(pid):
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    match = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def run(command, environment, line=None, whole_tree=False):
    """Runs `command` to its end. Raises `Failed` with the last line of its stderr where it does not succeed, and where
    no line of it matches `line`.

    The peak memory is the process's largest resident set; with `whole_tree` that of all processes below it together.
    """
    start = time.perf_counter()
    child = subprocess.Popen(
        [str(word) for word in command], env=environment, text=True, errors="replace", start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    out, err = Lines(child.stdout), Lines(child.stderr, line)
    tree = TreeMemory(child.pid) if whole_tree else None
    alarm = threading.Timer(TIMEOUT, kill_group, [child.pid])
    alarm.start()
    try:
        _, status, usage = os.wait4(child.pid, 0)
    except BaseException:
        kill_group(child.pid)
        child.wait()
        raise
    finally:
        alarm.cancel()
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    peak = tree.stop() if tree else usage.ru_maxrss * 1024
    stdout, stderr = out.text(), err.text()
    if child.returncode != 0:
        raise Failed(reason(child.returncode, stderr, seconds))
    if line and not err.matched_at:
        raise Failed(f"no line on stderr matches {line}")
    return Finished(stdout, seconds, peak, err.matched_at and err.matched_at - start)


def kill_group(pid):
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def reason(code, stderr, seconds):
    if code == -signal.SIGKILL and seconds >= TIMEOUT:
        return f"not done after {TIMEOUT} s"
    lines = [text for text in map(str.strip, stderr.splitlines()) if text]
    # A stage says what is wrong on a line of its own, and hints after it.
    errors = [text for text in lines if text.startswith("error:")]
    return (errors or lines or [f"exit status {code}"])[-1]
