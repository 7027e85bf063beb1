"""The learning rate over the steps of a stage."""

from __future__ import annotations

import math


def lr_multiplier(
    step: int, total_steps: int, *, name: str, warmup_fraction: float, final_fraction: float
) -> float:
    """Share of the peak learning rate at optimizer step `step` = 0 … total_steps − 1.

    The first w = round(warmup_fraction · total_steps) rise as (step + 1) / w: none has rate 0.
    Then, with p = (step − w) / (total_steps − w) and f = final_fraction:
    cosine f + (1 − f)(1 + cos πp)/2 ;  linear 1 − (1 − f)p ;  constant 1.
    f is reached after the last step, not in it: with f = 0 every step learns.
    Raises: ValueError if name is unknown, total_steps < 1 or step < 0.
    """
    if total_steps < 1:
        raise ValueError(f"total_steps must be >= 1, got {total_steps}")
    if step < 0:
        raise ValueError(f"step must be >= 0, got {step}")
    warmup = min(round(warmup_fraction * total_steps), total_steps - 1)
    progress = min(1.0, max(0, step - warmup) / (total_steps - warmup))
    shapes = {
        "cosine": final_fraction + (1 - final_fraction) * (1 + math.cos(math.pi * progress)) / 2,
        "linear": 1 - (1 - final_fraction) * progress,
        "constant": 1.0,
    }
    if name not in shapes:
        raise ValueError(f"schedule.name must be one of {', '.join(shapes)}, got {name!r}")
    return (step + 1) / warmup if step < warmup else shapes[name]
