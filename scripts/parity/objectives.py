"""The equations of preference learning and policy optimisation, in float64 and from their papers.

They are written in another way than `crates/objectives` computes them, so that a mistake would have to be made twice:
sums instead of recursions, cases instead of maxima, derivatives by hand, decimals where float64 would cancel. Inputs
are float32 numbers, which both sides read alike.
"""

from __future__ import annotations

import math
import statistics
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path
from typing import Any, Sequence

import torch
from common import write_json

Numbers = list[float]
Rows = list[Numbers]


class Draw:
    """Normal numbers of float32, as Python's floats."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, count: int, scale: float = 1.0, offset: float = 0.0) -> Numbers:
        return (scale * torch.randn(count, generator=self.generator) + offset).tolist()


def single(numbers: Sequence[float]) -> Numbers:
    """The nearest float32 numbers."""
    return torch.tensor(numbers, dtype=torch.float32).tolist()


# --- advantages ------------------------------------------------------------------------------------------------------


def gae(rewards: Numbers, values: Numbers, gamma: float, lam: float) -> tuple[Numbers, Numbers]:
    """Schulman et al. 2016, arXiv:1506.02438, eq. 16 as it stands: `A_t = Σ_l (γλ)^l δ_{t+l}`, and `A_t + V_t`."""
    after = values[1:] + [0.0]
    deltas = [r + gamma * nxt - v for r, v, nxt in zip(rewards, values, after)]
    advantages = [
        math.fsum((gamma * lam) ** step * delta for step, delta in enumerate(deltas[t:])) for t in range(len(deltas))
    ]
    return advantages, [a + v for a, v in zip(advantages, values)]


def whiten(rows: Rows, shift_mean: bool) -> Rows:
    """Huang et al. 2024, arXiv:2403.17031, detail 22, with TRL's sample variance and 1e-8 below the root."""
    numbers = [x for row in rows for x in row]
    mean = math.fsum(numbers) / len(numbers)
    unit = math.sqrt(statistics.variance(numbers) + 1e-8) if len(numbers) > 1 else 1.0
    return [[(x - mean) / unit + (0.0 if shift_mean else mean) for x in row] for row in rows]


def rloo(rewards: Numbers) -> Numbers:
    """One group of Ahmadian et al. 2024, arXiv:2402.14740, eq. 8: the mean of the others is taken away."""
    return [r - statistics.mean(rewards[:i] + rewards[i + 1 :]) for i, r in enumerate(rewards)]


def grpo(rewards: Numbers, scale: bool) -> Numbers:
    """One group of Shao et al. 2024, arXiv:2402.03300, section 4.1.2, with TRL's 1e-4 beside the sample deviation."""
    mean, unit = statistics.mean(rewards), statistics.stdev(rewards) + 1e-4 if scale else 1.0
    return [(r - mean) / unit for r in rewards]


def gae_cases() -> dict[str, Any]:
    draw = Draw(1)
    rows = [(draw(n), draw(n)) for n in (9, 6, 3, 1, 0)]
    # Rewards that almost cancel, a score far from what was expected, numbers too small to matter, a long response.
    rows += [
        (single([1e6, -1e6, 1e6, 0.5]), single([-1e6, 1e6, 1e6 + 0.5, 1e-3])),
        (single([0.0, 0.0, 1e4]), single([-1e4, 0.0, 1e-4])),
        (draw(4, scale=1e-20), draw(4, scale=1e-20)),
        (draw(40, scale=0.01), draw(40)),
    ]
    settings = []
    for gamma, lam in ((1.0, 0.95), (0.99, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0), (0.0, 0.95)):
        results = [gae(rewards, values, gamma, lam) for rewards, values in rows]
        advantages, returns = ([result[i] for result in results] for i in (0, 1))
        settings.append({"gamma": gamma, "lambda": lam, "advantages": advantages, "returns": returns})
    return {"rewards": [r for r, _ in rows], "values": [v for _, v in rows], "settings": settings}


def whiten_cases() -> list[dict[str, Any]]:
    draw = Draw(2)
    inputs: dict[str, Rows] = {
        "ragged": [draw(n) for n in (7, 1, 0, 4)],
        "far from 0": [draw(5, scale=0.5, offset=1e3), draw(3, scale=0.5, offset=1e3)],
        "smaller than epsilon": [draw(4, scale=1e-5), draw(2, scale=1e-5)],
        "much smaller": [draw(3, scale=1e-20)],
        "one among equals": [single([0.1] * 6), single([0.1, 5.0])],
        "equal": [single([0.1] * 4), single([0.1] * 3)],
        "one": [single([3.7])],
        "two": [single([2.0]), single([-1.0])],
        "huge": [single([1e30, -1e30]), single([1e29, 0.0])],
    }
    return [
        {"name": name, "rows": rows, "shifted": whiten(rows, True), "kept": whiten(rows, False)}
        for name, rows in inputs.items()
    ]


def group_cases() -> list[dict[str, Any]]:
    draw = Draw(3)
    inputs: list[Rows] = [
        [draw(2) for _ in range(3)],
        [draw(4), draw(4, scale=1e-3, offset=2.0)],
        [draw(8, scale=3.0, offset=-5.0)],
        # Right and wrong answers, all alike, one that stands out, rewards that hardly differ.
        [single([1, 0, 0, 1]), single([1, 1, 1, 1]), single([0.3] * 4), single([0, 0, 0, 1])],
        [single([1e6, -1e6, 1e-3]), single([1.0, 1.00001, 0.99999]), single([1e30, 0.0, -1e20])],
    ]
    cases = []
    for groups in inputs:
        case: dict[str, Any] = {"group": len(groups[0]), "rewards": sum(groups, [])}
        case["rloo"] = sum(map(rloo, groups), [])
        case["grpo"] = sum((grpo(group, True) for group in groups), [])
        case["unscaled"] = sum((grpo(group, False) for group in groups), [])
        cases.append(case)
    return cases


# --- divergence ------------------------------------------------------------------------------------------------------

LOG_RATIOS = [0.0, 0.5, -0.5, 2.0, -2.0, 1e-3, -1e-3, 1e-8, -1e-8, 30.0, -30.0, 700.0, -80.0]


def kl_cases() -> dict[str, Any]:
    """Schulman 2020, "Approximating KL Divergence". With r = p/q there, `log_ratio` is -log r: k1 = -log r,
    k2 = (log r)² / 2, k3 = (r - 1) - log r."""
    rows = []
    with localcontext() as context:
        context.prec = 60
        for ratio in LOG_RATIOS:
            log_r = -Decimal(ratio)
            r = log_r.exp()
            # The derivatives are those to `log_ratio`.
            rows.append(
                {
                    "log_ratio": ratio,
                    "values": [float(-log_r), float(log_r * log_r / 2), float(r - 1 - log_r)],
                    "derivatives": [1.0, float(-log_r), float(1 - r)],
                }
            )
    return {"estimators": ["k1", "k2", "k3"], "rows": rows}


def coefficient_cases() -> list[dict[str, Any]]:
    """Ziegler et al. 2019, arXiv:1909.08593, section 2.2, in fractions."""
    cases = []
    for coef, kl, target, episodes, horizon in (
        (0.2, 6.0, 6.0, 64, 10_000), (0.2, 6.5, 6.0, 64, 10_000), (0.2, 5.5, 6.0, 512, 10_000), (0.05, 1e9, 6.0, 64, 100),
        (0.05, 0.0, 6.0, 64, 10_000), (0.05, -3.0, 0.5, 8, 1_000),
    ):
        error = min(max(Fraction(kl) / Fraction(target) - 1, Fraction(-1, 5)), Fraction(1, 5))
        after = float(Fraction(coef) * (1 + error * episodes / horizon))
        cases.append(
            {"coef": coef, "kl": kl, "target": target, "episodes": episodes, "horizon": horizon, "after": after}
        )
    return cases


# --- losses ----------------------------------------------------------------------------------------------------------


def policy_token(new: float, old: float, advantage: float, below: float, above: float) -> tuple[float, float, bool]:
    """Loss, derivative to the log-probability, and whether it is clipped. Schulman et al. 2017, arXiv:1707.06347, eq. 7
    in words: an answer that is good may become more likely up to 1 + ε, a bad one less likely down to 1 - ε."""
    ratio = math.exp(new - old)
    assert min(abs(ratio - bound) for bound in (1 - below, 1 + above)) > 1e-5, "a case at the edge of the clip"
    if advantage > 0 and ratio > 1 + above:
        return -(1 + above) * advantage, 0.0, True
    if advantage < 0 and ratio < 1 - below:
        return -(1 - below) * advantage, 0.0, True
    return -ratio * advantage, -ratio * advantage, False


def policy_cases() -> list[dict[str, Any]]:
    draw = Draw(4)

    def near(count: int, spread: float) -> tuple[Numbers, Numbers]:
        old = [-abs(x) for x in draw(count)]
        return single([a + b for a, b in zip(old, draw(count, scale=spread))]), old

    inputs = {
        "around the clip": ((0.2, 0.2), *near(16, 0.3), draw(16)),
        "clip-higher": ((0.2, 0.28), *near(12, 0.4), draw(12)),
        "first step": ((0.2, 0.2), *near(5, 0.0), draw(5)),
        # Tokens that have become certain or impossible, under advantages of either sign and of none.
        "far off": (
            (0.2, 0.2),
            single([-1.0, -80.0, -1.0, -80.0, -0.5, -40.0, -1e-6]),
            single([-80.0, -1.0, -80.0, -1.0, -9.5, -3.0, -1e-7]),
            single([1.5, 1.5, -1.5, -1.5, 0.0, 0.0, 1e4]),
        ),
    }
    cases = []
    for name, ((below, above), new, old, advantages) in inputs.items():
        tokens = [policy_token(*token, below, above) for token in zip(new, old, advantages)]
        cases.append(
            {
                "name": name, "clip_range": [below, above], "logprobs": new, "old_logprobs": old, "advantages": advantages,
                "losses": [loss for loss, _, _ in tokens], "gradient": [slope for _, slope, _ in tokens],
                "clipped": sum(clipped for _, _, clipped in tokens),
                "ratio": [math.exp(a - b) for a, b in zip(new, old)],
                "approx_kl": [(a - b) ** 2 / 2 for a, b in zip(new, old)],
            }
        )
    return cases


def value_token(value: float, old: float, target: float, reach: float | None) -> tuple[float, float, bool]:
    """Half the squared error, its derivative, and whether it is that of the clipped value. Huang et al. 2024,
    arXiv:2403.17031, detail 23."""
    plain = (value - target) ** 2 / 2
    if reach is not None and abs(value - old) > reach:
        clipped = (old + math.copysign(reach, value - old) - target) ** 2 / 2
        assert abs(clipped - plain) > 1e-5 * plain, "a case at the edge of the clip"
        if clipped > plain:
            return clipped, 0.0, True
    return plain, value - target, False


def value_cases() -> list[dict[str, Any]]:
    draw = Draw(5)
    old = draw(16)
    moved = single([a + b for a, b in zip(old, draw(16, scale=0.4))])
    targets = single([a + b for a, b in zip(old, draw(16))])
    far = (
        single([1e4, 1e4, 1e4, 3.0, 0.0, 1e-20]), single([-1e4, -1e4, -1e4, 3.0, 1e4, 0.0]),
        single([0.0, 1e4, 1e4, 3.0, 1e4, 0.0]),
    )
    inputs = {
        "around the clip": (0.2, moved, old, targets), "narrow": (0.05, moved, old, targets), "none": (None, moved, old, targets),
        "far off": (0.25, *far),
    }
    cases = []
    for name, (reach, values, before, wanted) in inputs.items():
        tokens = [value_token(*token, reach) for token in zip(values, before, wanted)]
        cases.append(
            {
                "name": name, "clip_range": reach, "values": values, "old_values": before, "returns": wanted,
                "losses": [loss for loss, _, _ in tokens], "gradient": [slope for _, slope, _ in tokens],
                "clipped": sum(clipped for _, _, clipped in tokens),
            }
        )
    return cases


def softplus(x: float) -> float:
    """log(1 + e^x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def pair(chosen: float, rejected: float, margin: float, p: float, centering: float) -> tuple[float, float, float]:
    """Loss and its derivatives to the two scores. Ouyang et al. 2022, arXiv:2203.02155, eq. 1, as the cross-entropy of the
    label p; the margin of Touvron et al. 2023, arXiv:2307.09288, eq. 2; centred as by Eisenstein et al. 2023,
    arXiv:2312.09244."""
    logit, total = chosen - rejected - margin, chosen + rejected
    loss = p * softplus(-logit) + (1 - p) * softplus(logit) + centering * total**2
    # σ(x) - p, without the digits that are lost where σ(x) is all but 1.
    slope = (1 - p) * sigmoid(logit) - p * sigmoid(-logit)
    return loss, slope + 2 * centering * total, -slope + 2 * centering * total


def pair_cases() -> list[dict[str, Any]]:
    draw = Draw(6)
    a, b = draw(8, scale=2.0), draw(8, scale=2.0)
    margins = [abs(x) for x in draw(8)]
    labels = torch.rand(8, generator=draw.generator).tolist()
    far = (single([1e4, -1e4, 90.0, -90.0, 1e-4, 0.0, 30.0]), single([-1e4, 1e4, -10.0, 10.0, -1e-4, 0.0, 30.0]))
    extreme_labels = single([1.0, 1.0, 0.0, 0.5, 0.5, 0.25, 0.9])
    inputs: dict[str, tuple[Numbers, Numbers, Numbers | None, Numbers | None, float]] = {
        "plain": (a, b, None, None, 0.0), "margins": (a, b, margins, None, 0.0), "labels": (a, b, None, labels, 0.0),
        "all": (a, b, margins, labels, 0.01), "far apart": (*far, None, None, 0.0),
        "far apart, labels": (*far, single([0.5, 0.5, 100.0, -3.0, 0.0, 0.0, 1e3]), extreme_labels, 1e-3),
    }
    cases = []
    for name, (chosen, rejected, given, probabilities, centering) in inputs.items():
        neutral = (given or [0.0] * len(chosen), probabilities or [1.0] * len(chosen))
        pairs = [pair(*numbers, centering) for numbers in zip(chosen, rejected, *neutral)]
        right = [1.0 if x > y else 0.5 if x == y else 0.0 for x, y in zip(chosen, rejected)]
        cases.append(
            {
                "name": name, "chosen": chosen, "rejected": rejected, "margins": given, "probabilities": probabilities,
                "centering": centering, "losses": [row[0] for row in pairs], "chosen_gradient": [row[1] for row in pairs],
                "rejected_gradient": [row[2] for row in pairs], "correct": sum(right),
                "differences": [x - y for x, y in zip(chosen, rejected)],
            }
        )
    return cases


def write_all(out: Path) -> None:
    write_json(out / "gae.json", gae_cases())
    write_json(out / "whiten.json", whiten_cases())
    write_json(out / "groups.json", group_cases())
    write_json(out / "kl.json", {**kl_cases(), "coefficients": coefficient_cases()})
    write_json(out / "policy.json", policy_cases())
    write_json(out / "value.json", value_cases())
    write_json(out / "pairs.json", pair_cases())
