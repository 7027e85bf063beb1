"""Numbers that say how good a model is; none of them carries a gradient into training."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.functional._checks import at_least_float32, require_same_shape
from rlhf_lightning.functional.masked import masked_var


def explained_variance(
    values: Float[Tensor, "*shape"], returns: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    """1 − Var(returns − values) / Var(returns) over real tokens.

    1 is perfect, 0 what a constant has; NaN where all returns are equal but for rounding (a variance of at most 1e-8).
    Raises: ValueError if shapes differ or no token is real.
    """
    require_same_shape(values=values, returns=returns, mask=mask)
    of_returns = masked_var(returns, mask)
    share = 1 - masked_var(returns - values, mask) / of_returns
    return torch.where(of_returns > 1e-8, share, torch.full_like(share, torch.nan))


def expected_calibration_error(
    probabilities: Float[Tensor, " pair"], *, bins: int = 10
) -> Float[Tensor, ""]:
    """Σ_b n_b/n · |accuracy_b − confidence_b| of pairwise probabilities σ(s_w − s_l).

    As recorded, the first of each pair always wins, which leaves nothing to calibrate. So each pair
    counts in both orders, as (p, won) and (1 − p, lost). These mirror each other in [0, 1], so they
    are folded: confidence max(p, 1 − p), right where p > ½ (½ right at p = ½), in `bins` equal bins
    over [½, 1].
    Raises: ValueError if there is no pair, or bins < 1.
    Source: Guo et al. 2017, arXiv:1706.04599, eq. 3.
    """
    _require_some("probabilities", probabilities)
    if bins < 1:
        raise ValueError(f"bins must be >= 1, got {bins}")
    probabilities = at_least_float32(probabilities)
    confidence = torch.maximum(probabilities, 1 - probabilities)
    right = _outcomes(probabilities, torch.full_like(probabilities, 0.5))
    index = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    # n_b · (accuracy − confidence) is the bin's sum of differences: no empty bin divides by 0
    gaps = torch.zeros(bins, dtype=confidence.dtype, device=confidence.device)
    return gaps.index_add(0, index, right - confidence).abs().sum() / len(probabilities)


def kl_bon(n: int) -> float:
    """KL of best-of-n against the policy it samples from, in nats: log n − (n − 1)/n.

    Raises: ValueError if n < 1.
    Source: Stiennon et al. 2020, arXiv:2009.01325, appendix G.3.
    """
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n}")
    return math.log(n) - (n - 1) / n


def best_of_n(
    scores: Float[Tensor, " sample"], n: int, *, values: Float[Tensor, " sample"] | None = None
) -> Float[Tensor, ""]:
    """Unbiased estimate of the mean value of the best of n, from N >= n samples of one prompt.

    Σ_i C(i−1, n−1) / C(N, n) · value of the i-th sample in ascending order of score.
    values: what is averaged (the gold scores, say); the scores themselves if absent.
    Raises: ValueError if n is not in 1 … N, or shapes differ.
    Source: Nakano et al. 2021, arXiv:2112.09332.
    """
    total = len(scores)
    if not 1 <= n <= total:
        raise ValueError(f"n must be in 1..{total} (the samples), got {n}")
    values = scores if values is None else values
    require_same_shape(scores=scores, values=values)
    log_all = _log_binomial(total, n)
    weights = [math.exp(_log_binomial(i - 1, n - 1) - log_all) for i in range(n, total + 1)]
    values = at_least_float32(values)
    # the first n − 1 samples are the best of no n: their weight is 0
    ranked = values[torch.argsort(scores, stable=True)][n - 1 :]
    return (ranked * torch.tensor(weights, dtype=values.dtype, device=values.device)).sum()


def _log_binomial(n: int, k: int) -> float:
    """log C(n, k); C itself overflows at some hundred samples."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _outcomes(a: Tensor, b: Tensor) -> Tensor:
    """1 where a > b, ½ where they are equal, 0 elsewhere."""
    return (a > b).float() + 0.5 * (a == b).float()


def _require_some(name: str, items: Tensor) -> None:
    if len(items) == 0:
        raise ValueError(f"{name} must not be empty, got {tuple(items.shape)}")
