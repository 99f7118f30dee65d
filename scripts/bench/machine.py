"""What the measurements were made on and with, without anything that tells whose machine it is."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from paths import BINARIES, ROOT

CPU_INFO = Path("/proc/cpuinfo")
# What decides the rate of matrix products, where the CPU has it.
EXTENSIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def cores():
    """Cores this process may use; two threads of one core count once, as libtorch counts them."""
    allowed = os.sched_getaffinity(0)
    found = set()
    for block in CPU_INFO.read_text().split("\n\n"):
        fields = dict(re.findall(r"^(.+?)\s*:\s*(.*)$", block, re.MULTILINE))
        if int(fields.get("processor", -1)) in allowed:
            found.add((fields.get("physical id"), fields.get("core id", fields["processor"])))
    return len(found) or len(allowed)


def describe(args):
    info = CPU_INFO.read_text()
    model = re.search(r"^model name\s*:\s*(.*)$", info, re.MULTILINE)
    flags = set(info.partition("\nflags")[2].partition("\n")[0].split())
    memory = int(re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())[1]) / 2**20
    described = {
        "command": shlex.join(["scripts/bench/run", *sys.argv[1:]]),
        "cpu": f"{model[1] if model else 'unknown'} ({', '.join(name for name in EXTENSIONS if name in flags)})",
        "cores": f"{cores()}, {args.threads} threads used",
        "memory": f"{memory:.0f} GiB",
        "commit": commit(),
        "temper": output(BINARIES / "sft", "--version").removeprefix("sft "),
    }
    if args.device == "cuda":
        described["gpu"] = output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return described


def versions(runs):
    """Of the libraries that the runs say they used, all where there are several."""
    found = {}
    for run in runs:
        for name, version in run.get("versions", {}).items():
            found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(versions)) for name, versions in found.items()}


def commit():
    hash = output("git", "-C", ROOT, "rev-parse", "--short=12", "HEAD")
    changed = output("git", "-C", ROOT, "status", "--porcelain", "--untracked-files=no")
    return f"{hash} with changes" if changed not in ("", "unknown") else hash


def output(*command):
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
