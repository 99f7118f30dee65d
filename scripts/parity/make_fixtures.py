#!/usr/bin/env python3
"""Writes the golden files under tests/fixtures/parity: what transformers, tokenizers and torch compute.

  make_fixtures.py OUT_DIR [--only models,reward-models,adapters,four-bit,objectives,templates,tokenizers,schedules,
                              warpers,text-metrics,evaluation]

The same versions on the same machine write the same bytes. `scripts/parity/run` installs the versions, runs this
and compares.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Callable

import common

PARTS = (
    "models", "reward-models", "adapters", "four-bit", "objectives", "templates", "tokenizers", "schedules", "warpers",
    "text-metrics", "evaluation",
)


def writer(part: str) -> Callable[[Path], None]:
    """The part's function; imported late, because each needs other heavy packages."""
    import importlib

    module = {"tokenizers": "tokenizer_files"}.get(part, part.replace("-", "_"))
    return importlib.import_module(module).write_all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default=",".join(PARTS), help="parts to write, comma-separated")
    args = parser.parse_args()
    common.set_up_torch()
    for part in args.only.split(","):
        shutil.rmtree(args.out / part, ignore_errors=True)
        writer(part)(args.out / part)
    common.write_json(args.out / "versions.json", common.versions())
    files = [f for f in args.out.rglob("*") if f.is_file()]
    print(f"{args.out}: {len(files)} files, {sum(f.stat().st_size for f in files)} bytes")


if __name__ == "__main__":
    main()
