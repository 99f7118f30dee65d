#!/usr/bin/env python3
"""Holds the committed fixtures, and directories written by temper, to transformers as installed here.

  check.py fixtures COMMITTED FRESH     the fixtures, made again, are what they were
  check.py models DIR...                each DIR: a Hugging Face model directory with `probe.safetensors` beside it
                                        (`input_ids` [1, T], `logits` [T, V] as temper computed them; of a reward model
                                        `input_ids`, `attention_mask` [R, T], `scores` [R]) and, where it has a
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
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

TOLERANCE = 1e-5


def model_problems(path: Path) -> list[str]:
    """Loads the directory as any user would and compares logits, or a reward model's scores."""
    probe = load_file(path / "probe.safetensors")
    is_reward_model = "scores" in probe
    auto_class = AutoModelForSequenceClassification if is_reward_model else AutoModelForCausalLM
    model, loading = auto_class.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    problems = [f"{path}: {kind}: {sorted(map(str, names))}" for kind, names in loading.items() if names]
    model.eval()
    with torch.no_grad():
        if not is_reward_model:
            logits = model(input_ids=probe["input_ids"], use_cache=False).logits[0]
            return problems + distances(f"{path}: logits", logits, probe["logits"])
        for padding, scores in scores_of(model, probe).items():
            problems += distances(f"{path}: scores, {padding}", scores, probe["scores"])
    return problems


def distances(what: str, theirs: torch.Tensor, ours: torch.Tensor) -> list[str]:
    """Complains of another shape, of a difference, and of numbers too small to show one."""
    if theirs.shape != ours.shape:
        return [f"{what} {tuple(theirs.shape)}, temper's {tuple(ours.shape)}"]
    # A larger model adds more numbers, and sums of them round further.
    allowed = TOLERANCE * max(1.0, float(theirs.abs().max()) / 8)
    distance = common.gap(theirs, ours)
    print(f"{what} differ by {distance:.2e} (allowed {allowed:.0e})")
    problems = []
    if not distance <= allowed:
        problems.append(f"{what} differ by {distance:.3g}, allowed {allowed:.3g}")
    if common.gap(theirs, ours * 1.01) <= allowed:
        problems.append(f"{what}: the check would not see a change of 1 %")
    return problems


def scores_of(model: PreTrainedModel, probe: common.Tensors) -> common.Tensors:
    """Of each row alone, and where there is a padding token of all, padded on the right and on the left."""
    ids, mask = probe["input_ids"], probe["attention_mask"]
    rows = [row[: int(length)] for row, length in zip(ids, mask.sum(1))]
    found = {"each alone": torch.cat([model(input_ids=row[None], use_cache=False).logits[:, 0] for row in rows])}
    if model.config.pad_token_id is None:
        return found
    found["padded on the right"] = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0]
    left, mask = torch.stack([row.roll(-int(length)) for row, length in zip(ids, mask.sum(1))]), mask.flip(1)
    # GPT-2 counts positions from the start of the row unless it is told.
    positions = mask.cumsum(1) - mask
    out = model(input_ids=left, attention_mask=mask, position_ids=positions, use_cache=False)
    return {**found, "padded on the left": out.logits[:, 0]}


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
