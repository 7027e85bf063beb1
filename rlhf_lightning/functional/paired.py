"""Whether two models differ on the same prompts: a paired test that assumes no distribution."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

EXACT = 16
"""Differences other than 0 up to which all 2ⁿ assignments of signs are counted; beyond, the normal approximation."""


def sign_flip_p(differences: Float[Tensor, " prompt"]) -> float:
    """Two-sided p-value of the hypothesis that each difference might as well have the other sign.

    T = |Σ dᵢ| ;  p = share of all 2ⁿ sign assignments ε with |Σ εᵢdᵢ| ≥ T. A difference of 0 changes nothing.
    NaN where a difference is not finite. For n > 16: Σ εᵢdᵢ has mean 0 and variance Σ dᵢ², so p ≈ erfc(T / √(2 Σ dᵢ²)).
    Raises: ValueError if there is no prompt.
    Source: Fisher 1935, The Design of Experiments, section 21.
    """
    if len(differences) == 0:
        raise ValueError(f"differences must not be empty, got {tuple(differences.shape)}")
    if not differences.isfinite().all():
        return math.nan
    moved = differences[differences != 0].double()
    if len(moved) == 0:
        return 1.0
    observed = float(moved.sum().abs())
    if len(moved) > EXACT:
        return math.erfc(observed / math.sqrt(2 * float((moved**2).sum())))
    sums = torch.zeros(1, dtype=torch.float64, device=moved.device)
    for difference in moved:
        sums = torch.cat([sums + difference, sums - difference])
    # equal sums differ by the rounding of the numbers that were given
    slack = 8 * torch.finfo(differences.dtype).eps * float(moved.abs().sum())
    return float((sums.abs() >= observed - slack).double().mean())
