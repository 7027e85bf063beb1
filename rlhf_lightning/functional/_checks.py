"""Checks that several functions share: without them a wrong shape would broadcast in silence."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor


def require_same_shape(**tensors: Tensor) -> None:
    """Raises: ValueError if the shapes differ, with every name and shape."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"shapes must be equal, got {got}")


def require_prefix(mask: Bool[Tensor, "batch response"]) -> None:
    """Raises: ValueError if a row has no real token, or has padding before a real token."""
    if not bool(mask.any(dim=1).all()):
        row = int((~mask.any(dim=1)).nonzero()[0, 0])
        raise ValueError(f"mask must have a real token in every row, got none in row {row}")
    if mask.shape[1] > 1 and bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        row = int((mask[:, 1:] & ~mask[:, :-1]).nonzero()[0, 0])
        raise ValueError(f"mask must be right-padded, got padding before a real token in row {row}")


def at_least_float32(x: Tensor) -> Tensor:
    """`x` itself, or in fp32 where it is half precision: sums of many small terms need it."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
