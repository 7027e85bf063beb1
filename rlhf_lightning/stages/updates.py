"""What every stage does around its loss: learning rate, clip, step, and the refusal of non-finite numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlhf_lightning.config import ScheduleConfig
from rlhf_lightning.errors import RunFailed
from rlhf_lightning.functional.schedules import lr_multiplier

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]


class LearningRate:
    """Learning rates as a pure function of the step: nothing to save, nothing to fall out of step."""

    def __init__(self, schedule: ScheduleConfig, total_steps: int) -> None:
        self.schedule, self.total_steps = schedule, total_steps

    def apply(self, optimizer: Optimizer, step: int) -> float:
        """Set every group's rate for optimizer step `step` (from 0); returns the first group's."""
        factor = lr_multiplier(
            step,
            self.total_steps,
            name=self.schedule.name,
            warmup_fraction=self.schedule.warmup_fraction,
            final_fraction=self.schedule.final_fraction,
        )
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = group["initial_lr"] * factor
        return optimizer.param_groups[0]["lr"]


def step_optimizer(
    optimizer: Any, parameters: Iterable[nn.Parameter], *, grad_clip: float, where: str
) -> float:
    """Clip to one global norm, step, clear the gradients. Returns the norm before clipping.

    Raises: RunFailed where the norm is not finite; nothing was changed then.
    """
    norm = float(nn.utils.clip_grad_norm_(list(parameters), grad_clip))
    if not math.isfinite(norm):
        raise RunFailed(f"{where}: the gradient norm is {norm}; weights are those before this step")
    optimizer.step()
    optimizer.zero_grad()
    return norm


def require_finite(loss: Tensor, *, where: str, what: str = "loss") -> None:
    """Raises: RunFailed that names the step where a number is NaN or infinite."""
    if not torch.isfinite(loss.detach()).all():
        value = loss.detach().float().mean().item()
        raise RunFailed(f"{where}: the {what} is {value}; the last good checkpoint is kept")
