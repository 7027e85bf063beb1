"""The losses. Each is a sum over real items divided by a `normalizer` that the caller gives.

The normalizer is the count of the whole minibatch over all ranks (its real tokens, its prompts):
the gradients of micro-batches then add up to that of the minibatch, however it is split. Statistics
are divided by it too and add up likewise, but a maximum. They carry no gradient. Padding may hold
anything, NaN included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_lightning.functional._checks import at_least_float32, require_same_shape
from rlhf_lightning.functional.kl import kl_k3
from rlhf_lightning.functional.logprobs import masked_token_logprobs


@dataclass(frozen=True)
class PolicyStats:
    """Of the policy loss; sums over real tokens / normalizer, but for the maximum."""

    clip_fraction: Float[Tensor, ""]
    """Share of tokens where the clip took the gradient away."""
    approx_kl: Float[Tensor, ""]
    """KL(π_old‖π) by k3: mean of (ρ − 1) − log ρ, in nats per token."""
    ratio_mean: Float[Tensor, ""]
    ratio_max: Float[Tensor, ""]
    """0 where no token is real."""


@dataclass(frozen=True)
class ValueStats:
    """Of the value loss; a sum over real tokens / normalizer."""

    clip_fraction: Float[Tensor, ""]
    """Share of tokens where the clipped error is the larger one."""


def policy_loss(
    logprobs: Float[Tensor, "batch response"],
    old_logprobs: Float[Tensor, "batch response"],
    advantages: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    *,
    clip_range: float,
    normalizer: float | Tensor,
) -> tuple[Float[Tensor, ""], PolicyStats]:
    """PPO's clipped surrogate.

    ρ = exp(logprobs − old_logprobs) ;  loss = Σ max(−A·ρ, −A·clip(ρ, 1 ± clip_range)) / normalizer.
    normalizer: real tokens of the minibatch over all ranks.
    Raises: ValueError if shapes differ.
    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7.
    """
    require_same_shape(
        logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask
    )
    new, old, advantages = (_real(x, mask) for x in (logprobs, old_logprobs, advantages))
    ratio = torch.exp(new - old)  # 1 in padding, where the advantage is 0
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = torch.maximum(plain, clipped).sum() / normalizer
    with torch.no_grad():
        seen = _real(ratio, mask)
        stats = PolicyStats(
            clip_fraction=(clipped > plain).sum() / normalizer,
            # samples come from the old policy, so it is the first argument of the estimator
            approx_kl=kl_k3(old, new).sum() / normalizer,
            ratio_mean=seen.sum() / normalizer,
            ratio_max=seen.max(),
        )
    return loss, stats


def value_loss(
    values: Float[Tensor, "batch response"],
    old_values: Float[Tensor, "batch response"],
    returns: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    *,
    clip_range: float,
    normalizer: float | Tensor,
) -> tuple[Float[Tensor, ""], ValueStats]:
    """Clipped squared error of the value model.

    loss = ½ Σ max((V − R)², (V_old + clip(V − V_old, ± clip_range) − R)²) / normalizer.
    normalizer: real tokens of the minibatch over all ranks.
    Raises: ValueError if shapes differ.
    Source: Engstrom et al. 2020, arXiv:2005.12729, section 3.
    """
    require_same_shape(values=values, old_values=old_values, returns=returns, mask=mask)
    new, old, returns = (_real(x, mask) for x in (values, old_values, returns))
    plain = (new - returns) ** 2
    clipped = (old + (new - old).clamp(-clip_range, clip_range) - returns) ** 2
    loss = 0.5 * torch.maximum(plain, clipped).sum() / normalizer
    return loss, ValueStats(clip_fraction=(clipped > plain).sum() / normalizer)


def kwise_loss(
    scores: Float[Tensor, " completion"],
    pairs: Int[Tensor, "pair 2"],
    weights: Float[Tensor, " pair"],
    margins: Float[Tensor, " pair"],
    *,
    prompts: float | Tensor,
    margin: float = 0.0,
    centering: float = 0.0,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Bradley–Terry over all pairs of each prompt's K completions.

    d = s_w − s_l − margin·margins ;  ε = label_smoothing ;
    pair = −(1−ε) log σ(d) − ε log σ(−d) + centering·((s_w + s_l)/2)² ;
    loss = Σ weights·pair / prompts, with weights = 1 / pairs of the same prompt.
    pairs: rows (winner, loser) of `scores`; margins: rank distance of each pair;
    prompts: the normalizer, those of the minibatch (over all ranks) that have a pair.
    Raises: ValueError if pairs, weights and margins differ in length.
    Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 1; the margin is that of Touvron et al. 2023,
    arXiv:2307.09288, eq. 2.
    """
    winners, losers = pairs.long().unbind(1)
    require_same_shape(winners=winners, weights=weights, margins=margins)
    scores = at_least_float32(scores)
    won, lost = scores[winners], scores[losers]
    difference = won - lost - margin * margins
    agreeing, flipped = logsigmoid(difference), logsigmoid(-difference)
    pair = -(1 - label_smoothing) * agreeing - label_smoothing * flipped
    pair = pair + centering * ((won + lost) / 2) ** 2
    return (weights * pair).sum() / prompts


def causal_lm_loss(
    logits: Float[Tensor, "batch token vocab"],
    ids: Int[Tensor, "batch token"],
    loss_mask: Bool[Tensor, "batch token"],
    *,
    normalizer: float | Tensor,
) -> Float[Tensor, ""]:
    """Cross-entropy of the target tokens: −Σ log π(ids[t] | before t) / normalizer, in fp32.

    loss_mask marks the targets; logits[t − 1] predict ids[t], so index 0 is never one. In a packed
    row the mask must leave out each document's first token, which its own document cannot predict.
    normalizer: target tokens of the minibatch over all ranks.
    Raises: ValueError if shapes differ.
    """
    require_same_shape(ids=ids, loss_mask=loss_mask, logits=logits[:, :, 0])
    # padding and prompts never cost an fp32 row of the vocabulary; logits[:, -1] predict nothing
    expected, targets = ids.roll(-1, 1), loss_mask.roll(-1, 1)
    targets[:, -1] = False
    return -masked_token_logprobs(logits, expected, targets).sum() / normalizer


def _real(x: Tensor, mask: Tensor) -> Tensor:
    """`x` with 0 in padding, at least in fp32.

    Before any maths: a NaN that has been through exp() comes back out of its gradient.
    """
    x = at_least_float32(x)
    return torch.where(mask, x, torch.zeros_like(x))
