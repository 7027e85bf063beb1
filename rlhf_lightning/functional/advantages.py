"""From one score a response to an advantage for each of its tokens."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.functional._checks import require_prefix, require_same_shape


def token_rewards(
    scores: Float[Tensor, " batch"],
    kl: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    *,
    kl_coef: float,
) -> Float[Tensor, "batch response"]:
    """rₜ = −β·klₜ, plus the score at the last real token; 0 in padding.

    kl: kl_k1 of each token, in nats. mask: right-padded.
    Raises: ValueError if kl and mask differ in shape, if there is not one score a row, or if a row
    is empty or not right-padded.
    Source: Ouyang et al. 2022, arXiv:2203.02155, section 3.5, equation 2.
    """
    require_same_shape(kl=kl, mask=mask)
    require_same_shape(scores=scores, rows=mask[:, 0])
    require_prefix(mask)
    penalty = torch.where(mask, -kl_coef * kl, torch.zeros_like(kl))
    # (B, R): True only at the last real token (EOS, or where the length limit cut)
    last = torch.arange(mask.shape[1], device=mask.device) == mask.sum(1, keepdim=True) - 1
    return penalty + torch.where(last, scores.unsqueeze(1), torch.zeros_like(penalty))


def gae(
    rewards: Float[Tensor, "batch response"],
    values: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Float[Tensor, "batch response"], Float[Tensor, "batch response"]]:
    """Generalised advantage estimation over response tokens: (advantages, returns), 0 in padding.

    δₜ = rₜ + γVₜ₊₁ − Vₜ ;  Aₜ = δₜ + γλAₜ₊₁ ;  returns = A + V ;  V after the last real token is 0.
    values[t] is V before token t. mask: right-padded.
    Raises: ValueError if shapes differ, a row is empty or not right-padded.
    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    """
    require_same_shape(rewards=rewards, values=values, mask=mask)
    require_prefix(mask)
    # zeros in padding make "V after the end is 0" hold, and every δ and A there 0
    rewards = torch.where(mask, rewards, torch.zeros_like(rewards))
    values = torch.where(mask, values, torch.zeros_like(values))
    next_values = torch.nn.functional.pad(values[:, 1:], (0, 1))
    deltas = rewards + gamma * next_values - values
    advantage = torch.zeros_like(deltas[:, 0])
    backwards: list[Tensor] = []
    for delta in reversed(deltas.unbind(1)):
        advantage = delta + gamma * gae_lambda * advantage
        backwards.append(advantage)
    advantages = torch.stack(backwards[::-1], dim=1)
    return advantages, advantages + values


def rloo(
    rewards: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"], *, samples: int
) -> Float[Tensor, "batch response"]:
    """Leave-one-out advantages: each response against the mean of the prompt's other ones, 0 in padding.

    Rᵢ = Σₜ rᵢₜ ;  Aᵢₜ = Rᵢ − (1/(k−1)) Σ_{j≠i} Rⱼ, the same for every token of response i.
    rewards: with KL and score. Rows are grouped: `samples` (k ≥ 2) responses to one prompt follow each other.
    Raises: ValueError if shapes differ, k < 2, or the rows are no whole groups.
    Source: Ahmadian et al. 2024, arXiv:2402.14740, eq. 8.
    """
    require_same_shape(rewards=rewards, mask=mask)
    if samples < 2 or len(rewards) % samples:
        raise ValueError(f"rows must be groups of >= 2 samples, got {len(rewards)} in {samples}s")
    totals = torch.where(mask, rewards, torch.zeros_like(rewards)).sum(1).view(-1, samples)
    others = (totals.sum(1, keepdim=True) - totals) / (samples - 1)
    advantages = (totals - others).view(-1, 1)
    return torch.where(mask, advantages, torch.zeros_like(rewards))
