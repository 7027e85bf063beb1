"""ddp: all weights in every process, gradients summed before the step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from rlhf_lightning.processes import step_if_finite

BUCKET = 2**24
"""Numbers that are summed over processes at once."""


class DataParallel(DDPStrategy):
    """Lightning's DDP without its wrapper.

    The wrapper expects one backward pass a step that reaches every parameter. A step of PPO has several, of policy and
    value model in turn, so gradients are summed once, when they are complete.
    """

    def configure_ddp(self) -> None:
        assert self.model is not None
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            dist.broadcast(tensor.detach(), src=0)

    def clip_and_step(
        self, optimizer: Any, parameters: Iterable[nn.Parameter], limit: float
    ) -> float:
        """Sum the gradients over processes, clip them to one global norm, step; returns the norm before clipping."""
        parameters = list(parameters)
        sum_over_processes([p.grad for p in parameters if p.grad is not None])
        return step_if_finite(optimizer, float(nn.utils.clip_grad_norm_(parameters, limit)))

    def discard_gradients(self, optimizer: Any) -> None:
        """Forget them: no step is taken."""
        optimizer.zero_grad()

    def frozen_state(self, model: nn.Module) -> dict[str, Any]:
        """What a checkpoint keeps of a model that is not trained but changes."""
        return model.state_dict()

    def load_frozen(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Put back what a checkpoint has of a model that is not trained."""
        model.load_state_dict(state)

    def place_frozen(self, model: nn.Module, device: torch.device) -> None:
        """Put a model that is not trained where it is used."""
        nn.Module.to(model, device)


def sum_over_processes(tensors: list[Tensor]) -> None:
    """Replace each tensor by its sum over processes, a bucket at a time."""
    for bucket in _buckets(tensors):
        flat = _flatten_dense_tensors(bucket)
        dist.all_reduce(flat)
        for tensor, total in zip(bucket, _unflatten_dense_tensors(flat, bucket), strict=True):
            tensor.copy_(total)


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype, about BUCKET numbers together."""
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        bucket = kinds.setdefault(tensor.dtype, [])
        bucket.append(tensor)
        if sum(t.numel() for t in bucket) >= BUCKET:
            yield kinds.pop(tensor.dtype)
    yield from kinds.values()
