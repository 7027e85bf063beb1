"""Statistics over the real tokens of a padded tensor.

Padding is replaced (torch.where), never multiplied by 0: NaN · 0 is NaN.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.functional._checks import at_least_float32, require_same_shape


def masked_sum(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Σ x over real tokens, at least in fp32.

    0 where no token is real: a micro-batch may have none.
    Raises: ValueError if shapes differ.
    """
    require_same_shape(x=x, mask=mask)
    x = at_least_float32(x)
    return torch.where(mask, x, torch.zeros_like(x)).sum()


def masked_mean(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Σ x / n over the n real tokens.

    Raises: ValueError if shapes differ, or if no token is real.
    """
    return masked_sum(x, mask) / _count(mask)


def masked_var(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Σ (x − μ)² / n over the n real tokens: the population variance.

    Raises: ValueError if shapes differ, or if no token is real.
    """
    mean = masked_mean(x, mask)
    return masked_mean((at_least_float32(x) - mean) ** 2, mask)


def whiten(
    x: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    *,
    center: bool = True,
) -> Float[Tensor, "*shape"]:
    """(x − μ) · rsqrt(σ² + 1e-8) over real tokens; padding becomes 0.

    center=False only scales: x · rsqrt(σ² + 1e-8), σ² still being taken around μ. The form for
    rewards, where a shift would pay (or charge) for every token of length.
    Raises: ValueError if shapes differ, or if no token is real.
    Source: Huang et al. 2024, arXiv:2403.17031 (reward whitening keeps the mean).
    """
    x = at_least_float32(x)
    mean = masked_mean(x, mask)
    var = masked_mean((x - mean) ** 2, mask)
    shifted = x - mean if center else x
    return torch.where(mask, shifted * torch.rsqrt(var + 1e-8), torch.zeros_like(x))


def _count(mask: Tensor) -> Tensor:
    count = mask.sum()
    if not bool(count > 0):
        raise ValueError(f"mask must have a real token, got none in shape {tuple(mask.shape)}")
    return count
