"""What the fixture scripts share: writing files, and measuring distances."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Mapping

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

Tensors = dict[str, torch.Tensor]


def set_up_torch() -> None:
    """One thread and deterministic kernels: the same bits on every run on one machine."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    from transformers.utils import logging

    logging.disable_progress_bar()


def write_json(path: Path, value: Any) -> None:
    """Readable JSON, one file a line end, Korean kept as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """A safetensors file without aliases (safetensors refuses shared memory)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().clone().contiguous() for name, t in tensors.items()}, path)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference, taken in float64."""
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0


def rms(a: torch.Tensor, b: torch.Tensor) -> float:
    """Root of the mean squared difference, taken in float64."""
    return float((a.double() - b.double()).square().mean().sqrt())


def versions() -> dict[str, str]:
    """The packages whose behaviour the fixtures record."""
    from importlib.metadata import version

    names = ("torch", "transformers", "peft", "tokenizers", "safetensors", "bitsandbytes", "numpy", "Jinja2", "rouge_score", "sacrebleu")
    return {name: version(name) for name in names}
