"""The losses of one PPO micro-batch, and the check that nothing was updated before the first one."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.batches import Experience
from rlhf_lightning.config import PPOConfig
from rlhf_lightning.errors import RunFailed
from rlhf_lightning.functional.losses import policy_loss, value_loss
from rlhf_lightning.functional.masked import masked_sum
from rlhf_lightning.models.forward import token_values
from rlhf_lightning.stages.response_logits import ResponseLogits

RATIO_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.2, torch.float16: 0.2}
"""Allowed |ratio − 1| on an iteration's first minibatch, by what the policy computes in: of the largest in fp32, of the
mean in half precision. In bfloat16 another micro-batch size alone moved one of 960 tokens of SmolLM2-135M by 0.5, the
mean of all by 0.04."""


def actor_losses(
    policy: PreTrainedModel, micro: Experience, hp: PPOConfig, *, tokens: int
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The policy's clipped loss (minus the entropy bonus) / `tokens`, its log-probabilities (B, R), statistics."""
    mask = micro.response_mask
    sequence = (micro.prompt_ids, micro.prompt_mask, micro.response_ids, mask)
    logits = ResponseLogits.of(
        policy, sequence, temperature=hp.temperature, share_prompt=hp.share_prompt
    )
    logprobs = logits.logprobs(micro.response_ids)
    loss, found = policy_loss(
        logprobs,
        micro.logprobs,
        micro.advantages,
        mask,
        clip_range=hp.clip_range,
        normalizer=tokens,
    )
    statistics = {f.name: getattr(found, f.name) for f in fields(found)}
    statistics["policy_loss"] = loss.detach()
    if hp.entropy_coef > 0:
        bonus = masked_sum(logits.entropy(), mask) / tokens
        statistics["entropy"] = bonus.detach()
        loss = loss - hp.entropy_coef * bonus
    return loss, logprobs, statistics


def critic_loss(
    value: nn.Module,
    micro: Experience,
    hp: PPOConfig,
    *,
    tokens: int,
    hidden: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The value model's clipped loss / `tokens`, times its coefficient, and statistics.

    `hidden` (B, P + R, d) are the policy's states where the value model is a head on them.
    """
    mask, sequence = micro.response_mask, (micro.prompt_ids, micro.prompt_mask, micro.response_ids)
    values = token_values(value, *sequence, mask, hidden=hidden)
    loss, found = value_loss(
        values, micro.values, micro.returns, mask, clip_range=hp.value_clip_range, normalizer=tokens
    )
    statistics = {"value_loss": loss.detach(), "value_clip_fraction": found.clip_fraction}
    return hp.value_coef * loss, statistics


def ratio_error(logprobs: Tensor, micro: Experience, *, dtype: torch.dtype, tokens: int) -> Tensor:
    """|ρ − 1| of a policy that computes in `dtype`: in fp32 the largest, else the micro-batch's share of the mean."""
    mask = micro.response_mask
    error = (logprobs.detach() - micro.logprobs).masked_fill(~mask, 0.0).expm1().abs()
    return error.max() if dtype == torch.float32 else error.sum() / tokens


def check_ratio(error: float, *, dtype: torch.dtype, allowed: float | None, where: str) -> None:
    """The ratio is one on the first minibatch of every iteration: nothing has been updated yet.

    `error` is the minibatch's `ratio_error`, `allowed` is `ppo.ratio_tolerance`.
    Raises: RunFailed that names the likely causes.
    """
    allowed = allowed or RATIO_TOLERANCE[dtype]
    if not error <= allowed:
        kind = "at most" if dtype == torch.float32 else "on average"
        raise RunFailed(
            f"{where}: the policy ratio differs from 1 by {kind} {error:.2e} before any update"
            f" (allowed {allowed:.0e}, ppo.ratio_tolerance); likely causes: the temperature is not applied in"
            " both places, dropout is on, position ids or the padding side differ between sampling and update"
        )
