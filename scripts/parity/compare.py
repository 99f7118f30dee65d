"""Compares a fresh set of fixtures with the committed one.

Text, ids and structure must be equal. Floats may differ by what rounding does on another processor: `noise` fields
are measurements of that and only bounded; everything else is held to a tolerance derived from them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Iterator

import torch
from common import gap
from safetensors.torch import load_file

LOGITS, LOSS, GRADIENT, WEIGHT, DOUBLE = 1e-5, 1e-5, 1e-4, 1e-6, 1e-12


def json_differences(old: Any, new: Any, where: str) -> Iterator[str]:
    """Every place where two JSON values differ by more than rounding."""
    if where.endswith(("noise", "_error", "logits_rms", "logits_max", "margin")) or "noise" in where:
        return
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for key in old:
            yield from json_differences(old[key], new[key], f"{where}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new)):
            yield from json_differences(a, b, f"{where}[{index}]")
    elif isinstance(old, float) and isinstance(new, float):
        slack = 0.02 if ".bf16." in where else DOUBLE if where.startswith("objectives/") else LOSS
        if not math.isclose(old, new, rel_tol=slack, abs_tol=slack):
            yield f"{where}: {old} is now {new}"
    elif old != new:
        yield f"{where}: {str(old)[:80]!r} is now {str(new)[:80]!r}"


def tolerance(name: str, old: torch.Tensor, expect: dict[str, Any]) -> float:
    """How far a tensor may move between processors."""
    train = expect.get("train", {})
    kind, _, parameter = name.partition(".")
    if kind == "grad":
        return max(GRADIENT * float(old.abs().max()), 8 * train["grad_noise"][parameter])
    if kind in ("after_1", "after_3"):
        noise = train[f"{kind}_noise"][parameter]
        # A noise this large marks a gradient that is 0 but for rounding: Adam may step either way.
        return 8 * train["lr"] if noise > 1e-5 else max(WEIGHT, 8 * noise)
    if kind == "bf16":
        return 2 * expect["bf16"]["full"]["logits_max"]
    noise = expect.get(kind, {}).get("noise", 0.0) if kind in ("logits", "merged_logits") else 0.0
    return max(LOGITS, 8 * noise)


def tensor_differences(old_path: Path, new_path: Path, where: str) -> Iterator[str]:
    expect_path = old_path.parent / "expect.json"
    expect = json.loads(expect_path.read_text()) if expect_path.exists() else {}
    old, new = load_file(old_path), load_file(new_path)
    if old.keys() != new.keys():
        yield f"{where}: other tensors: {sorted(old.keys() ^ new.keys())}"
        return
    for name, before in old.items():
        after = new[name]
        if before.dtype != after.dtype or before.shape != after.shape:
            yield f"{where}: {name}: {before.dtype} {tuple(before.shape)} is now {after.dtype} {tuple(after.shape)}"
            continue
        exact = not before.is_floating_point() or "model" in old_path.parent.name
        allowed = 0.0 if exact else tolerance(name, before, expect)
        distance = gap(before, after)
        if not distance <= allowed:
            yield f"{where}: {name}: differs by {distance:.3g}, allowed {allowed:.3g}"


def differences(committed: Path, fresh: Path) -> list[str]:
    """One line for each difference; empty when the sets agree."""

    def files(root: Path) -> set[Path]:
        return {f.relative_to(root) for f in root.rglob("*") if f.is_file() and f.name != "README.md"}

    old, new = files(committed), files(fresh)
    found = [f"{path}: {'missing' if path in old else 'not committed'}" for path in sorted(old ^ new)]
    for path in sorted(old & new):
        if path.name == "versions.json":
            continue
        if path.suffix == ".safetensors":
            found += tensor_differences(committed / path, fresh / path, str(path))
        else:
            pair = [json.loads((root / path).read_text(encoding="utf-8")) for root in (committed, fresh)]
            found += json_differences(*pair, str(path))
    return found
