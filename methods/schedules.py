"""Learning-rate factors as pure functions of the step. No torch, no state: a resumed run asks for its own step.

`step` counts optimizer steps. The loop asks for step 1 on its first step, so that none is spent at a rate of 0.
All but `infinite` return a factor of the peak learning rate; `total` is the last step, later ones keep its value.
"""

import math
from typing import Literal


def warmup_steps(total: int, share: float = 0.03, least: int = 5) -> int:
    """A share of the steps, rounded up, at least `least`. Source: Llama 2, 3.2.2 (3 %, at least 5); rounding is ours."""
    return max(least, math.ceil(round(share * total, 9)))


def cosine(step: int, *, total: int, warmup: int, floor: float = 0.1) -> float:
    """Linear warm-up, then a cosine to `floor`. Source: Llama 2 (floor 0.1); Ibrahim et al. 2024 re-warm with it."""
    if step < warmup:
        return step / warmup
    done = min((step - warmup) / (total - warmup), 1.0) if total > warmup else 1.0
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def linear(step: int, *, total: int, warmup: int, floor: float = 0.0) -> float:
    """Linear warm-up, then a line to `floor`."""
    if step < warmup:
        return step / warmup
    done = min((step - warmup) / (total - warmup), 1.0) if total > warmup else 1.0
    return 1 - (1 - floor) * done


def constant(step: int, *, warmup: int = 0) -> float:
    """Linear warm-up, then 1."""
    return step / warmup if step < warmup else 1.0


def infinite(
    step: int,
    *,
    peak: float,
    constant: float,
    least: float,
    warmup: int,
    cooldown: int,
    anneal: int,
    end: int,
    shape: Literal["cosine", "inverse_sqrt"] = "cosine",
    alpha: float = 10.0,
) -> float:
    """Learning rate (not a factor) of a schedule that can go on for ever at `constant` and anneal whenever wanted.

    Args:
        peak, constant, least: rates after warm-up, in the constant phase, at the end.
        warmup, cooldown, anneal, end: last steps of warm-up, cool-down, constant phase, annealing.
        alpha: steepness of the inverse square root; 10 is from memory, the paper's text gives none.

    Raises:
        ValueError: steps that do not rise.

    Source: Ibrahim et al. 2024, section 7.
    """
    if not 0 <= warmup < cooldown <= anneal < end:
        raise ValueError(f"want 0 <= warmup < cooldown <= anneal < end, found {warmup}, {cooldown}, {anneal}, {end}")
    if step <= warmup:
        return peak * step / warmup if warmup else peak
    if step <= cooldown:
        x = (step - warmup) / (cooldown - warmup)
        if shape == "cosine":
            return constant + 0.5 * (peak - constant) * (1 + math.cos(math.pi * x))
        return peak + (constant - peak) * (1 / math.sqrt(1 + alpha * x) - 1) / (1 / math.sqrt(1 + alpha) - 1)
    if step <= anneal:
        return constant
    return float(constant * (least / constant) ** (min((step - anneal) / (end - anneal), 1.0)))
