"""The processes that train one model together: who this one is, what it computes, what all of them know.

Every process makes the whole global batch (text is cheap), computes its share of the rows, and gathers what the others
computed: what is decided from it is then decided alike everywhere. In one process everything here is the identity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def all_sum(x: Tensor) -> Tensor:
    """The sum over processes; `x` itself stays as it is."""
    if world_size() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    if world_size() == 1:
        return number
    found = torch.tensor(number)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def gather(item: T) -> list[T]:
    """What each process has, in the order of ranks."""
    if world_size() == 1:
        return [item]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, item)
    return found


def wait_for_all() -> None:
    """Until every process is here."""
    if world_size() > 1:
        dist.barrier()


def share(count: int, group_size: int = 1) -> list[int]:
    """The rows of `count` that this process computes: every W-th group of rows, equally many everywhere.

    Where they do not come out even the last ones are computed more than once; `in_order` drops the copies.
    """
    size, groups = world_size(), math.ceil(count / group_size)
    own = [min(rank() + i * size, groups - 1) for i in range(math.ceil(groups / size))]
    return [min(group * group_size + i, count - 1) for group in own for i in range(group_size)]


def counts_once(count: int, group_size: int = 1) -> list[bool]:
    """Of each of this process's rows (`share`), whether it is the row itself and no copy that fills up."""
    own = (rank() + i * world_size() for i in range(len(share(count, group_size)) // group_size))
    return [group * group_size + i < count for group in own for i in range(group_size)]


def in_order(parts: Sequence[Sequence[T]], count: int, group_size: int = 1) -> list[T]:
    """The rows of all processes' shares (`gather`ed) in their own order, each once."""
    size = len(parts)
    places = (divmod(row, group_size) for row in range(count))
    return [parts[group % size][group // size * group_size + i] for group, i in places]


def shares(items: Sequence[T]) -> Iterator[tuple[T, bool]]:
    """This process's items, and whether each counts: all processes get equally many.

    One that does not count is there so that nobody waits for a forward pass that never comes.
    """
    size = world_size()
    for start in range(0, len(items), size):
        place = start + rank()
        yield (items[place], True) if place < len(items) else (items[-1], False)


def piece_size(count: int, limit: int) -> int:
    """Rows of one forward pass, at most `limit`, such that `count` rows are equally many passes in each process."""
    size = world_size()
    if size == 1:
        return limit
    passes = max(math.ceil(count / (size * limit)), 1)
    return max(math.ceil(count / (size * passes)), 1)


def step_if_finite(optimizer: Any, norm: float) -> float:
    """Step and clear the gradients, unless their norm, the same in all processes, is not finite; returns the norm."""
    if math.isfinite(norm):
        optimizer.step()
        optimizer.zero_grad()
    return norm


def is_sharded(module: nn.Module) -> bool:
    """Whether the weights are spread over processes, so that a forward pass is work that all must do together."""
    return any(hasattr(p, "device_mesh") or hasattr(p, "ds_id") for p in module.parameters())
