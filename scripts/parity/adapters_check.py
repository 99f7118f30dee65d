#!/usr/bin/env python3
"""Holds adapters written by temper to PEFT as installed here.

  adapters_check.py DIR...
  adapters_check.py --base DIR --adapter DIR --expect FILE.safetensors

DIR: a folder with `base`, `adapter` and `probe.safetensors`, which are what the options name. DIR of the base: a Hugging
Face model directory. FILE: what temper computed with both, as in the probes of `check.py`: `input_ids` [1, T] and
`logits` [1, T, V] or [T, V]; of a reward model `input_ids`, `attention_mask` [R, T], `scores` [R].
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import check
import common
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel


# Of an embedding beside IA3: PEFT has no way to keep it and the output layer that shares it one.
UNTIED = "but no implementation exists to tie the adapters"


def load(plain: PreTrainedModel, adapter: Path) -> tuple[PeftModel, list[str]]:
    """As any user would, but with what PEFT only warns of, and with the names it passes over, as problems."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(plain, str(adapter)).eval()
    said = [str(warning.message) for warning in caught if issubclass(warning.category, (UserWarning, RuntimeWarning))]
    problems = [f"{adapter}: PEFT says: {message}" for message in said if UNTIED not in message]
    theirs = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    ours = load_file(adapter / "adapter_model.safetensors").keys()
    problems += [f"{adapter}: PEFT would also write {name}" for name in sorted(theirs - ours)]
    problems += [f"{adapter}: PEFT does not know {name}" for name in sorted(ours - theirs)]
    return model, problems


def outputs(model: torch.nn.Module, probe: common.Tensors) -> common.Tensors:
    with torch.no_grad():
        if "scores" in probe:
            return {f"scores, {padding}": scores for padding, scores in check.scores_of(model, probe).items()}
        return {"logits": model(input_ids=probe["input_ids"], use_cache=False).logits[0]}


def adapter_problems(base: Path, adapter: Path, expect: Path) -> list[str]:
    """Loads the adapter over the base and compares logits or a reward model's scores. Those of the base must differ."""
    probe = load_file(expect)
    auto_class = AutoModelForSequenceClassification if "scores" in probe else AutoModelForCausalLM
    plain = auto_class.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    without = outputs(plain, probe)
    model, problems = load(plain, adapter)
    ours = probe["scores"] if "scores" in probe else probe["logits"].flatten(0, -2)
    for kind, theirs in outputs(model, probe).items():
        problems += check.distances(f"{adapter}: {kind}", theirs, ours)
        if common.gap(theirs, without[kind]) < 100 * check.TOLERANCE:
            problems.append(f"{adapter}: {kind}: the base alone says the same, so nothing was compared")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dirs", type=Path, nargs="*")
    options = ("base", "adapter", "expect")
    for name in options:
        parser.add_argument(f"--{name}", type=Path)
    args = parser.parse_args()
    one = [getattr(args, name) for name in options]
    if bool(args.dirs) == any(one) or any(one) != all(one):
        parser.error("give folders, or --base, --adapter and --expect")
    common.set_up_torch()
    cases = [(path / "base", path / "adapter", path / "probe.safetensors") for path in args.dirs] or [one]
    problems = [problem for case in cases for problem in adapter_problems(*case)]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print("adapters: " + (f"{len(problems)} differences" if problems else "no difference"))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
