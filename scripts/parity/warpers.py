"""What transformers' logits processors leave of a distribution, alone and in the order `generate` applies them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from common import write_json
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

VOCAB = 24
CASES: list[dict[str, float]] = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.8},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 100},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"top_p": 0.0001},
    {"min_p": 0.05},
    {"min_p": 0.5},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8},
    {"temperature": 0.8, "top_k": 10, "top_p": 0.8},
    {"repetition_penalty": 1.2, "temperature": 1.4, "top_k": 12, "top_p": 0.95, "min_p": 0.02},
]


def processors(case: dict[str, float]) -> LogitsProcessorList:
    """The order of `GenerationMixin._get_logits_processor`."""
    make = {
        "repetition_penalty": lambda v: RepetitionPenaltyLogitsProcessor(penalty=v),
        "temperature": lambda v: TemperatureLogitsWarper(v),
        "top_k": lambda v: TopKLogitsWarper(top_k=int(v)),
        "top_p": lambda v: TopPLogitsWarper(top_p=v),
        "min_p": lambda v: MinPLogitsWarper(min_p=v),
    }
    return LogitsProcessorList([build(case[key]) for key, build in make.items() if key in case])


def write_all(out: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 2.0 * torch.randn(2, VOCAB, generator=generator)
    seen = torch.tensor([[3, 5, 5, 11], [0, 1, 2, 23]])
    cases: list[dict[str, Any]] = []
    for case in CASES:
        scores = processors(case)(seen, logits.clone())
        probabilities = scores.double().softmax(-1)
        cases.append({"settings": case, "probabilities": probabilities.tolist()})
    write_json(out / "warpers.json", {"logits": logits.tolist(), "seen": seen.tolist(), "cases": cases})
