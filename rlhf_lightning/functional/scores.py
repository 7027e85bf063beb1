"""What happens to a score before it becomes a reward: EOS rule, running scale, clip."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.functional._checks import at_least_float32
from rlhf_lightning.functional.masked import masked_mean, masked_var


def eos_rule(
    scores: Float[Tensor, " batch"],
    ended: Bool[Tensor, " batch"],
    *,
    mode: str,
    missing_eos_score: float,
) -> Float[Tensor, " batch"]:
    """Scores, changed where the response did not end with EOS.

    replace: it becomes missing_eos_score; subtract: missing_eos_score (−1 takes 1 off) is added;
    keep: nothing changes.
    Raises: ValueError if mode is none of these.
    Source: Huang et al. 2024, arXiv:2403.17031 (the EOS trick).
    """
    if mode == "replace":
        return torch.where(ended, scores, torch.full_like(scores, missing_eos_score))
    if mode == "subtract":
        return torch.where(ended, scores, scores + missing_eos_score)
    if mode == "keep":
        return scores
    raise ValueError(f"ppo.missing_eos must be one of replace, subtract, keep, got {mode!r}")


def clip_scores(
    scores: Float[Tensor, " batch"], limit: float
) -> tuple[Float[Tensor, " batch"], Float[Tensor, ""]]:
    """(scores in ±limit, the share of them that the clip changed).

    Raises: ValueError if limit is not positive.
    """
    if not limit > 0:
        raise ValueError(f"ppo.score_clip must be > 0, got {limit}")
    return scores.clamp(-limit, limit), (scores.abs() > limit).float().mean()


@dataclass(frozen=True)
class RunningMoments:
    """Count, mean and population variance of all scores so far: plain floats, for checkpoints."""

    count: float = 0.0
    mean: float = 0.0
    var: float = 0.0

    def update(self, scores: Float[Tensor, " batch"]) -> RunningMoments:
        """Moments of everything seen before and `scores`.

        δ = mean_b − mean_a ;  n = n_a + n_b ;  mean = mean_a + δ·n_b/n ;
        n·var = n_a·var_a + n_b·var_b + δ²·n_a·n_b/n.
        Raises: ValueError if there is no score.
        Source: Chan, Golub & LeVeque 1979, Stanford STAN-CS-79-773.
        """
        real = torch.ones_like(scores, dtype=torch.bool)
        mean, var = (float(f(scores, real)) for f in (masked_mean, masked_var))
        added = float(real.sum())
        count, delta = self.count + added, mean - self.mean
        spread = self.count * self.var + added * var + delta**2 * self.count * added / count
        return RunningMoments(count, self.mean + delta * added / count, spread / count)

    def normalize(self, scores: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The scores / √(var + 1e-8): scaled, not centred.

        Unchanged while the scores are equal but for rounding: / √1e-8 would blow them up.
        """
        scores = at_least_float32(scores)
        return scores / math.sqrt(self.var + 1e-8) if self.var > 1e-8 else scores
