#!/usr/bin/env python3
"""Holds the committed fixtures, and directories written by temper, to transformers as installed here.

  check.py fixtures COMMITTED FRESH     the fixtures, made again, are what they were
  check.py models DIR...                each DIR: a Hugging Face model directory with `probe.safetensors` beside it
                                        (`input_ids` [1, T], `logits` [T, V] as temper computed them) and, where it has a
                                        tokenizer, `probe.json` ([{"text", "ids"}] as temper encoded them)
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import common
import compare
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

LOGITS_TOLERANCE = 1e-5


def model_problems(path: Path) -> list[str]:
    """Loads the directory as any user would and compares logits."""
    probe = load_file(path / "probe.safetensors")
    model, loading = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    problems = [f"{path}: {kind}: {sorted(map(str, names))}" for kind, names in loading.items() if names]
    with torch.no_grad():
        logits = model.eval()(input_ids=probe["input_ids"], use_cache=False).logits[0]
    if logits.shape != probe["logits"].shape:
        return problems + [f"{path}: logits {tuple(logits.shape)}, temper's {tuple(probe['logits'].shape)}"]
    # A larger model adds more numbers, and sums of them round further.
    allowed = LOGITS_TOLERANCE * max(1.0, float(logits.abs().max()) / 8)
    distance = common.gap(logits, probe["logits"])
    print(f"{path}: logits differ by {distance:.2e} (allowed {allowed:.0e})")
    if not distance <= allowed:
        problems.append(f"{path}: logits differ by {distance:.3g}, allowed {allowed:.3g}")
    if common.gap(logits, probe["logits"] * 1.01) <= allowed:
        problems.append(f"{path}: the check would not see a change of 1 %")
    return problems


def tokenizer_problems(path: Path) -> list[str]:
    """AutoTokenizer must encode as temper did."""
    if not (path / "probe.json").exists():
        return []
    tokenizer = AutoTokenizer.from_pretrained(path)
    rows = json.loads((path / "probe.json").read_text(encoding="utf-8"))
    problems = []
    for row in rows:
        ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        if ids != row["ids"]:
            problems.append(f"{path}: {row['text']!r}: AutoTokenizer gives {ids}, temper {row['ids']}")
    print(f"{path}: {len(rows)} texts, {len(problems)} encoded otherwise")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    fixtures = commands.add_parser("fixtures")
    fixtures.add_argument("committed", type=Path)
    fixtures.add_argument("fresh", type=Path)
    models = commands.add_parser("models")
    models.add_argument("dirs", type=Path, nargs="+")
    args = parser.parse_args()
    common.set_up_torch()
    if args.command == "fixtures":
        problems = compare.differences(args.committed, args.fresh)
    else:
        problems = [p for path in args.dirs for check in (model_problems, tokenizer_problems) for p in check(path)]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print("parity: " + (f"{len(problems)} differences" if problems else "no difference"))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
