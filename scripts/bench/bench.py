"""Measures temper's programs and what a user would run in Python instead, in turn: in every round each case runs ours,
then each of its peers, so that a slow minute of the machine falls on all of them alike."""

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import re
import sys

import data
import machine
import ours
import peers
import process
import report
from cases import CASES
from paths import BINARIES, RECORDS, ROOT, WORK

LEAST_STEPS = 3


def parse():
    parser = argparse.ArgumentParser(
        prog="scripts/bench/run", description=__doc__, allow_abbrev=False,
        epilog="Exit status: 0 done, 1 something failed (the table says what), 2 wrong usage.",
    )
    parser.add_argument("--peers", action="store_true", help="run transformers, TRL, PEFT and datasets too")
    parser.add_argument("--cases", type=pattern, metavar="REGEX", help="only cases whose name it matches")
    parser.add_argument("--large", action="store_true", help="large models too: gigabytes of memory and of disk")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="default 3")
    parser.add_argument(
        "--steps", type=positive, metavar="N",
        help=f"steps of a training run or updates of ppo (at least {LEAST_STEPS}), calls of a generate run, prompts of "
        "cai's peer; default: each case's own",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=positive, default=machine.cores(), metavar="N", help="default: all cores")
    parser.add_argument(
        "--record", nargs="?", const="", metavar="NAME",
        help="write docs/benchmarks/DATE.md and DATE.json, with NAME DATE-NAME.md and DATE-NAME.json",
    )
    parser.add_argument("--list", action="store_true", help="list the cases and end")
    parser.add_argument(
        "--micro", nargs=argparse.REMAINDER, metavar="OPTION",
        help="only time single operations: runs `bench micro` with the options that follow",
    )
    args = parser.parse_args()
    if args.steps and args.steps < LEAST_STEPS:
        parser.error(f"--steps: at least {LEAST_STEPS}, the first two are not timed")
    args.chosen = chosen_cases(args)
    if not args.chosen:
        parser.error("--cases matches none; --list lists them")
    if args.peers and not args.list and args.micro is None and not peers.available():
        parser.error("--peers: start it as scripts/bench/run, which makes the peers' Python environment")
    return args


def pattern(text):
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"not a regular expression: {error}") from error


def positive(text):
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def chosen_cases(args):
    wanted = (case for case in CASES if args.large or not case.large)
    found = [case for case in wanted if args.cases is None or args.cases.search(case.name)]
    changed = {"steps": args.steps} if args.steps else {}
    return [case if case.task in ("start-up", "data-prep") else dataclasses.replace(case, **changed) for case in found]


def main():
    args = parse()
    if args.list:
        for case in args.chosen:
            print(f"{case.name:26} {case.about}")
        return 0
    if missing := missing_programs(args):
        return fail(f"no {' and no '.join(missing)} in target/release; build with: make build")
    if args.micro is not None:
        os.execv(BINARIES / "bench", ["bench", "micro", *args.micro])
    os.chdir(ROOT)
    results = {"date": now(), "machine": machine.describe(args), "runs": []}
    path = WORK / "results" / results["date"].replace(":", "")
    on = ours.Machine(args.device, args.threads)
    try:
        say("preparing data and models")
        counts = data.prepare(args.chosen, on)
        for round in range(1, args.rounds + 1):
            measure_round(round, args, on, counts, results["runs"])
            save(results, path)
    except process.Failed as failure:
        return fail(failure)
    except KeyboardInterrupt:
        return 130
    results["machine"] |= machine.versions(results["runs"])
    print(report.tables(results))
    save(results, path)
    if args.record is not None:
        record(results, args.record)
    failed = sum("error" in run for run in results["runs"])
    return fail(f"{failed} of {len(results['runs'])} runs failed; see the table") if failed else 0


def missing_programs(args):
    needed = {"bench"}
    if args.micro is None:
        needed |= {"data-prep"}.union(*(ours.PROGRAMS.get(case.task, ()) for case in args.chosen))
    return sorted(name for name in needed if not (BINARIES / name).exists())


def measure_round(round, args, on, counts, runs):
    """One run of everything."""
    for case in args.chosen:
        row_counts = counts.get(case.data_set) if case.task in (*ours.TRAINING, "ppo") else None

        def add(who, work):
            say(f"round {round}/{args.rounds}  {case.name}  {who}: ", end="")
            result = {"case": case.name, "who": who, "round": round, "at": now(), "load": os.getloadavg()[0]}
            try:
                result |= work()
            except process.Failed as failure:
                result["error"] = str(failure).replace(f"{ROOT}/", "")
            say(result.get("error") or f"{report.number(result['value'])} {case.unit}")
            runs.append(result)

        if case.task == "start-up" and round == 1:
            warm_up(case, args, on)
        if case.task in ours.BOUNDED:
            add("bound", lambda: ours.bound(case, on, row_counts))
        add("ours", lambda: {"data": row_counts} | ours.RUN[case.task](case, on))
        for peer in case.peers if args.peers else ():
            add(peer.name, lambda: peers.run(case, peer, on))


def warm_up(case, args, on):
    """One start of each side that is not measured, so that all find their files in memory and their caches filled."""
    with contextlib.suppress(process.Failed):
        ours.RUN[case.task](case, on)
        for peer in case.peers if args.peers else ():
            peers.run(case, peer, on)


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def save(results, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def record(results, name):
    day = results["date"][:10]
    stem = f"{day}-{name}" if name else day
    path = RECORDS / f"{stem}.md"
    save(results, path)
    peers_ran = any(run["who"] not in ("ours", "bound") for run in results["runs"])
    title = "temper and its peers" if peers_ran else "temper"
    origin = f"Written by `{results['machine']['command']}`; every run is in [{stem}.json]({stem}.json)."
    path.write_text(f"# Speed and memory of {title}, {day}\n\n{origin}\n\n{report.tables(results)}\n")
    say(f"written: docs/benchmarks/{stem}.md and {stem}.json")


def say(text, end="\n"):
    print(text, end=end, file=sys.stderr, flush=True)


def fail(why):
    say(f"error: {why}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
