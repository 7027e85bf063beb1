"""The same rollouts through our stages."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compare.trl_ppo import Models, Pass, gradients
from rlhf_lightning.batches import Experience, Rollout
from rlhf_lightning.config import PPOConfig
from rlhf_lightning.functional.logprobs import token_logprobs
from rlhf_lightning.models.forward import response_logits, sequence_scores, token_values
from rlhf_lightning.stages.ppo_losses import actor_losses, critic_loss
from tests.tiny import EOS, PAD

Sequence = tuple[Tensor, Tensor, Tensor, Tensor]
"""Prompt ids and mask, response ids and mask."""


def sequence(seen: dict[str, Tensor]) -> Sequence:
    """Prompts and responses in the order in which trl's loader gave them."""
    both, ids = seen["query_responses"], seen["responses"]
    prompt = both[:, : both.shape[1] - ids.shape[1]]
    return prompt, prompt != PAD, ids, ids != PAD


@torch.no_grad()
def rollout(models: Models, seen: dict[str, Tensor], *, temperature: float = 1.0) -> Rollout:
    """What our stages record of these responses; everything is computed from the weights."""
    prompt, prompt_mask, ids, mask = parts = sequence(seen)

    def logprobs(model: PreTrainedModel) -> Tensor:
        found = token_logprobs(response_logits(model, *parts), ids, temperature=temperature)
        return found.masked_fill(~mask, 0.0)

    return Rollout(
        prompt_ids=prompt,
        prompt_mask=prompt_mask,
        response_ids=ids,
        response_mask=mask,
        logprobs=logprobs(models.policy),
        ref_logprobs=logprobs(models.reference),
        values=token_values(models.value, *parts) * mask,
        scores=sequence_scores(
            models.reward, torch.cat([prompt, ids], 1), torch.cat([prompt_mask, mask], 1)
        ),
        ended=(ids == EOS).any(1),
    )


def micro_batch(found: Pass, *, mask: Tensor) -> Experience:
    """What trl updates on in this pass, with the given mask (B, R) of the whole batch."""
    seen, rows = found.seen, found.seen["rows"]
    prompt, prompt_mask, ids, _ = sequence(seen)
    whole = Experience(
        prompt_ids=prompt,
        prompt_mask=prompt_mask,
        response_ids=ids,
        response_mask=mask,
        logprobs=seen["logprobs"],
        values=seen["values"],
        advantages=seen["advantages"],
        returns=seen["returns"],
    )
    return whole.rows(rows)


def policy_pass(
    models: Models, found: Pass, micro: Experience, hp: PPOConfig
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Policy loss, its statistics, and the gradients, with the weights that trl had in this pass."""
    models.policy.load_state_dict(found.policy)
    models.policy.zero_grad()
    loss, _, statistics = actor_losses(
        models.policy, micro, hp, tokens=int(micro.response_mask.sum())
    )
    loss.backward()
    return loss.detach(), statistics, gradients(models.policy)


def value_pass(
    models: Models, found: Pass, micro: Experience, hp: PPOConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Value loss (before its coefficient) and the gradients (with it), likewise."""
    models.value.load_state_dict(found.value)
    models.value.zero_grad()
    loss, statistics = critic_loss(models.value, micro, hp, tokens=int(micro.response_mask.sum()))
    loss.backward()
    return statistics["value_loss"], gradients(models.value)
