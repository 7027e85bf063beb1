"""Estimators of KL(π‖π_ref) from samples of π, per token, and the adaptive coefficient.

With x ~ π and k1 = log π(x) − log π_ref(x): k1 and k3 are unbiased, k2 and k3 are never negative.
Source: Schulman 2020, "Approximating KL Divergence", joschu.net/blog/kl-approx.html.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def kl_k1(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """k1 = log π − log π_ref. Unbiased, of either sign; the one in the reward."""
    return logprobs - ref_logprobs


def kl_k2(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """k2 = ½ k1². Biased, low variance."""
    return 0.5 * (logprobs - ref_logprobs) ** 2


def kl_k3(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """k3 = e^(−k1) − 1 + k1. Unbiased, never negative."""
    k1 = logprobs - ref_logprobs
    # expm1: e^(−k1) − 1 in fp32 has no correct digit left where k1 is small
    return torch.expm1(-k1) + k1


def adapt_kl_coef(
    kl_coef: float, kl: float, *, target: float, horizon: int, episodes: int
) -> float:
    """The next β of the proportional controller.

    e = clip(kl / target − 1, ±0.2) ;  β ← β (1 + e · episodes / horizon).
    kl: mean per-sequence sum of kl_k1, in nats; episodes: of this iteration; horizon: in episodes.
    Raises: ValueError if kl is not finite.
    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
    """
    if not math.isfinite(kl):
        raise ValueError(f"kl must be finite, got {kl}")
    error = max(-0.2, min(0.2, kl / target - 1))
    return kl_coef * (1 + error * episodes / horizon)
