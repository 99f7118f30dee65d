"""Weights in 4 bits, as bitsandbytes makes and stores them on the CPU."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch  # noqa: E402
from bitsandbytes import functional  # noqa: E402
from common import Tensors, write_tensors  # noqa: E402

BLOCK = 64


def sources(code: str) -> Tensors:
    """Weights by name. No row is longer than a multiple of 16 that is not one of 64: there bitsandbytes 0.50.0 takes
    scales of other blocks where it has AVX-512, and what it dequantises depends on the processor."""
    generator = torch.Generator().manual_seed(9)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.02

    matrix = normal(24, 64)
    matrix[1, 7] = -40.0
    matrix[2] = 0.0
    values = functional.get_4bit_type(code, device="cpu").sort().values
    middles = (values[:-1] + values[1:]) / 2
    around = [middles, middles.nextafter(torch.tensor(-2.0)), middles.nextafter(torch.tensor(2.0))]
    return {
        "matrix": matrix.to(torch.bfloat16),
        "ragged": normal(5, 33),
        "half": normal(3, 86).to(torch.float16),
        # Halfway between two values and next to it; the largest is 1.
        "ties": torch.cat([*around, torch.ones(3), torch.zeros(16)]).view(1, 64),
        "zeros": torch.zeros(3, 23),
        # Smaller than the least divisor.
        "denormal": normal(1, 72) * 1e-37,
    }


def stored(name: str, weight: torch.Tensor, code: str, nested: bool) -> Tensors:
    """The weight as a state dict has it, and what it is worth again."""
    packed, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type=code, compress_statistics=nested)
    out = {name: packed, **{f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}}
    out[f"{name}.dequantised"] = functional.dequantize_4bit(packed, state).view(weight.shape)
    return out


def write_all(out: Path) -> None:
    for code in ("nf4", "fp4"):
        tensors: Tensors = {}
        for name, weight in sources(code).items():
            tensors[f"{name}.source"] = weight
            for kind in ("plain", "nested"):
                tensors.update(stored(f"{name}.{kind}", weight, code, kind == "nested"))
        if code == "nf4":
            # More than 256 scales, so that these too have several blocks: the source is rows times factors.
            generator = torch.Generator().manual_seed(10)
            rows = torch.randint(-127, 128, (300, BLOCK), generator=generator, dtype=torch.int8)
            factors = torch.randn(300, 1, generator=generator).abs() * 0.02
            found = stored("long", rows * factors, code, True)
            del found["long.dequantised"]
            tensors.update({**found, "long.rows": rows, "long.factors": factors})
        write_tensors(out / f"{code}.safetensors", tensors)
