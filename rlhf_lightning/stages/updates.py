"""What every stage does around its loss: learning rate, clip, step, and the refusal of non-finite numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlhf_lightning.config import ScheduleConfig
from rlhf_lightning.errors import RunFailed
from rlhf_lightning.functional.schedules import lr_multiplier
from rlhf_lightning.models.adapters import has_adapters
from rlhf_lightning.processes import step_if_finite

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]


class Gradients(Protocol):
    """What a strategy does with complete gradients."""

    def clip_and_step(
        self, optimizer: Any, parameters: Iterable[nn.Parameter], limit: float
    ) -> float:
        """Sum them over processes, clip them to one global norm, step and clear them.

        Returns the norm before clipping; where it is not finite nothing is changed.
        """
        ...

    def discard_gradients(self, optimizer: Any) -> None:
        """Forget them: no step is taken."""
        ...


class OneProcess:
    """Gradients are whole where they are."""

    def clip_and_step(
        self, optimizer: Any, parameters: Iterable[nn.Parameter], limit: float
    ) -> float:
        return step_if_finite(optimizer, float(nn.utils.clip_grad_norm_(list(parameters), limit)))

    def discard_gradients(self, optimizer: Any) -> None:
        optimizer.zero_grad()


ONE_PROCESS = OneProcess()


def gradients_of(module: Any) -> Gradients:
    """The module's strategy, if it has gradients to put together."""
    strategy = module.trainer.strategy
    return strategy if hasattr(strategy, "clip_and_step") else ONE_PROCESS


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


def trained(model: nn.Module | None) -> list[nn.Parameter]:
    """The parameters that an optimizer is to change."""
    return [] if model is None else [p for p in model.parameters() if p.requires_grad]


def computing_dtype(model: nn.Module) -> torch.dtype:
    """What a model computes in: autocast's dtype, or that of its weights."""
    weights = next(model.parameters())
    # offloaded weights lie on the CPU and are computed with on the GPU
    device = "cuda" if torch.is_autocast_enabled("cuda") else weights.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weights.dtype


class MovingAverage(nn.Module):
    """Exponential moving average of parameters, in fp32 whatever they are: a ← d·a + (1 − d)·p.

    In bfloat16 a step of (1 − d) · (p − a) would be rounded away at a usual d.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay, self.numbers = decay, nn.ParameterList()

    def begin(self, parameters: Iterable[nn.Parameter]) -> None:
        """Begin as the parameters are, if it has not begun: before a checkpoint is put back, and once they lie where
        they are trained, or it would be whole where they are spread."""
        if not len(self.numbers):
            copies = (p.detach().float().clone() for p in parameters)
            self.numbers.extend(nn.Parameter(c, requires_grad=False) for c in copies)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MovingAverage:
        # an engine (DeepSpeed) casts a whole module before it trains
        super()._apply(fn, recurse)
        for average in self.numbers:
            average.data = average.data.float()
        return self

    @torch.no_grad()
    def update(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take the parameters as they are now into the average."""
        for average, parameter in zip(self.numbers, parameters, strict=True):
            average.lerp_(parameter.float(), 1 - self.decay)

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put the average in the parameters' place."""
        for average, parameter in zip(self.numbers, parameters, strict=True):
            parameter.copy_(average)


def leave_out_frozen(checkpoint: dict[str, Any], model: nn.Module, prefix: str) -> None:
    """Take what adapters leave frozen out of a checkpoint: it comes back with the parent's artifact.

    Adapters stay in, those too that are not trained (a refreshed reference).
    """
    if not has_adapters(model):
        return
    # duplicates too: a tied output layer is the embedding under another name
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad and ".lora_" not in name:
            checkpoint["state_dict"].pop(f"{prefix}.{name}", None)


def require_whole(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Nothing that is trained may be missing from a checkpoint, nothing unknown in it.

    Raises: RunFailed that names the first difference.
    """
    saved = checkpoint["state_dict"].keys()
    trained = {n for n, p in module.named_parameters() if p.requires_grad or ".lora_" in n}
    wrong = (trained - saved) | (saved - module.state_dict().keys())
    if wrong:
        raise RunFailed(f"the checkpoint does not fit this run's model: {min(wrong)}")


def step_optimizer(
    optimizer: Any,
    parameters: Iterable[nn.Parameter],
    *,
    grad_clip: float,
    where: str,
    gradients: Gradients = ONE_PROCESS,
) -> float:
    """Clip to one global norm, step, clear the gradients. Returns the norm before clipping.

    Raises: RunFailed where the norm is not finite; nothing was changed then.
    """
    norm = gradients.clip_and_step(optimizer, parameters, grad_clip)
    if not math.isfinite(norm):
        raise RunFailed(f"{where}: the gradient norm is {norm}; weights are those before this step")
    return norm


def require_finite(
    loss: Tensor,
    *,
    where: str,
    what: str = "loss",
    then: str = "; the last good checkpoint is kept",
) -> None:
    """Raises: RunFailed that names the step where a number is NaN or infinite."""
    if not torch.isfinite(loss.detach()).all():
        value = loss.detach().float().mean().item()
        raise RunFailed(f"{where}: the {what} is {value}{then}")
