"""Learning rates of transformers' schedules, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from common import write_json
from transformers import get_scheduler

LEARNING_RATE = 1e-3
CASES: list[dict[str, Any]] = [
    {"name": "constant", "warmup_steps": 0, "total_steps": 12},
    {"name": "constant_with_warmup", "warmup_steps": 5, "total_steps": 12},
    {"name": "linear", "warmup_steps": 0, "total_steps": 10},
    {"name": "linear", "warmup_steps": 4, "total_steps": 20},
    {"name": "cosine", "warmup_steps": 0, "total_steps": 10},
    {"name": "cosine", "warmup_steps": 4, "total_steps": 20},
    {"name": "cosine", "warmup_steps": 1, "total_steps": 2},
    {"name": "cosine_with_min_lr", "warmup_steps": 4, "total_steps": 20, "specific": {"min_lr_rate": 0.1}},
    *(
        {
            "name": "warmup_stable_decay", "warmup_steps": 4, "total_steps": 20,
            "specific": {"num_decay_steps": 6, "decay_type": decay, "min_lr_ratio": ratio},
        }
        for decay, ratio in (("linear", 0.0), ("linear", 0.1), ("cosine", 0.1), ("1-sqrt", 0.0))
    ),
]


def table(case: dict[str, Any]) -> list[float]:
    """The rate used by step 0, 1, ... total_steps - 1, and the one after the last."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=LEARNING_RATE)
    scheduler = get_scheduler(
        case["name"], optimizer, num_warmup_steps=case["warmup_steps"], num_training_steps=case["total_steps"],
        scheduler_specific_kwargs=case.get("specific"),
    )
    rates = []
    for _ in range(case["total_steps"] + 1):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def write_all(out: Path) -> None:
    rows = [{**case, "learning_rate": LEARNING_RATE, "rates": table(case)} for case in CASES]
    write_json(out / "schedules.json", rows)
