"""PPO's first two arrows: prompts become rollouts, rollouts become experience. No gradient anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.batches import Experience, PromptBatch, Rollout
from rlhf_lightning.config import PPOConfig
from rlhf_lightning.functional.advantages import gae, rloo, token_rewards
from rlhf_lightning.functional.kl import kl_k1, kl_k3
from rlhf_lightning.functional.masked import masked_mean, masked_sum, whiten
from rlhf_lightning.functional.scores import RunningMoments, clip_scores, eos_rule
from rlhf_lightning.functional.statistics import explained_variance
from rlhf_lightning.models.forward import token_values, trim
from rlhf_lightning.models.generation import Responses, cast_once, draw_uniforms, sample
from rlhf_lightning.models.tokens import eos_id, pad_id
from rlhf_lightning.processes import counts_once, gather, in_order, share, world_size
from rlhf_lightning.rewards.base import RewardFunction, ScoreRequest
from rlhf_lightning.stages.response_logits import ResponseLogits

LOGITS = 2**28
"""Numbers that the logits of one pass over responses may have, 1 GB in fp32; one group of rows at least."""


@dataclass
class Sampling:
    """How responses are drawn, and how many at once."""

    max_response_tokens: int
    temperature: float
    batch_size: int
    """Responses in memory at once on this device."""
    tokenizer: PreTrainedTokenizerFast
    recompute_logprobs: bool = False
    """Take the policy's log-probabilities from a full forward pass instead of the sampler (lower precision)."""
    group_size: int = 1
    """Rows that stand together and have one prompt: a process computes all of them, and their prompt once."""


@torch.no_grad()
def collect(
    prompts: PromptBatch,
    policy: nn.Module,
    reference: nn.Module,
    value: nn.Module | None,
    reward: RewardFunction | None,
    sampling: Sampling,
    generator: torch.Generator,
    *,
    after_chunk: Callable[[int], None] = lambda _rows: None,
) -> Rollout:
    """Sample one response a prompt and record everything the update will need, (B, R) each.

    Without `value` the values are 0, without `reward` the scores are 0. `after_chunk` is told how many rows were made.
    With several processes each computes its share of the rows and has all of them at the end.
    """
    # prompts of like length share a chunk: little padding is computed
    lengths = prompts.mask.sum(1)
    uniforms = draw_uniforms(
        len(lengths), sampling.max_response_tokens, generator, order=lengths.argsort(stable=True)
    )
    models = (policy, reference, value, reward)
    if world_size() == 1:
        return _collect(prompts, uniforms, *models, sampling, after_chunk, None)
    own = torch.tensor(share(len(lengths), sampling.group_size))
    found = _collect(
        prompts.rows(own.to(lengths.device)),
        uniforms[own],
        *models,
        sampling,
        lambda rows: after_chunk(rows * world_size()),
        torch.tensor(counts_once(len(lengths), sampling.group_size)),
    )
    return _gathered(found, len(lengths), sampling.group_size, pad_id=pad_id(sampling.tokenizer))


def _gathered(own: Rollout, count: int, group_size: int, *, pad_id: int) -> Rollout:
    """The rows of all processes in the order of the global batch."""
    device = own.response_ids.device
    parts = gather(own.to("cpu"))
    height = len(own.scores)
    rows = [range(i * height, (i + 1) * height) for i in range(len(parts))]
    order = torch.tensor(in_order(rows, count, group_size))
    return _concatenate(parts, pad_id=pad_id).rows(order).to(device)


def _collect(
    prompts: PromptBatch,
    uniforms: Tensor,
    policy: nn.Module,
    reference: nn.Module,
    value: nn.Module | None,
    reward: RewardFunction | None,
    sampling: Sampling,
    after_chunk: Callable[[int], None],
    counted: Tensor | None,
) -> Rollout:
    """`collect` of these rows in this process."""
    order = prompts.mask.sum(1).argsort(stable=True)
    parts = []
    for rows in order.split(sampling.batch_size):
        chunk = prompts.rows(rows).trimmed()
        with cast_once(policy, chunk.ids.device):
            responses = sample(
                policy,
                chunk,
                max_new_tokens=sampling.max_response_tokens,
                temperature=sampling.temperature,
                eos_id=eos_id(sampling.tokenizer),
                pad_id=pad_id(sampling.tokenizer),
                uniforms=uniforms[rows.to(uniforms.device)],
            )
        own = None if counted is None else counted[rows.to(counted.device)]
        parts.append(_scored(chunk, responses, policy, reference, value, reward, sampling, own))
        after_chunk(len(rows))
    return _concatenate(parts, pad_id=pad_id(sampling.tokenizer)).rows(order.argsort())


def _scored(
    prompts: PromptBatch,
    responses: Responses,
    policy: nn.Module,
    reference: nn.Module,
    value: nn.Module | None,
    reward: RewardFunction | None,
    sampling: Sampling,
    counted: Tensor | None,
) -> Rollout:
    sequence = (prompts.ids, prompts.mask, responses.ids, responses.mask)
    together = sampling.group_size > 1

    def logprobs(model: nn.Module) -> Tensor:
        pieces = zip(*(t.split(_rows_at_once(model, sampling)) for t in sequence), strict=True)
        found = [
            ResponseLogits.of(
                model, piece, temperature=sampling.temperature, share_prompt=together
            ).logprobs(piece[2])
            for piece in pieces
        ]
        return torch.cat(found).masked_fill(~responses.mask, 0.0)

    zeros = torch.zeros_like(responses.logprobs)
    request = ScoreRequest(
        *sequence,
        records=prompts.records,
        tokenizer=sampling.tokenizer,
        share_prompt=together,
        counted=counted,
    )
    return Rollout(
        prompt_ids=prompts.ids,
        prompt_mask=prompts.mask,
        response_ids=responses.ids,
        response_mask=responses.mask,
        logprobs=logprobs(policy) if sampling.recompute_logprobs else responses.logprobs,
        ref_logprobs=logprobs(reference),
        values=zeros if value is None else token_values(value, *sequence) * responses.mask,
        scores=zeros[:, 0] if reward is None else reward(request),
        ended=responses.ended,
    )


def _rows_at_once(model: nn.Module, sampling: Sampling) -> int:
    """Responses whose logits are in memory together: whole groups, and as many in each process."""
    config: Any = model.config
    row = sampling.max_response_tokens * config.get_text_config().vocab_size
    groups = max(LOGITS // (row * sampling.group_size), 1)
    return groups * sampling.group_size


def _concatenate(parts: list[Rollout], *, pad_id: int) -> Rollout:
    """Rows of all chunks, padded to the widest: prompts on the left, responses on the right."""

    def joined(name: str) -> Tensor:
        tensors = [getattr(part, name) for part in parts]
        if tensors[0].dim() == 2:
            width, fill = max(t.shape[1] for t in tensors), pad_id if name.endswith("_ids") else 0
            left = name.startswith("prompt_")
            gaps = [width - t.shape[1] for t in tensors]
            tensors = [
                nn.functional.pad(t, (gap, 0) if left else (0, gap), value=fill)
                for t, gap in zip(tensors, gaps, strict=True)
            ]
        return torch.cat(tensors)

    return Rollout(**{f.name: joined(f.name) for f in fields(Rollout)})


@torch.no_grad()
def to_experience(
    rollout: Rollout,
    hp: PPOConfig,
    *,
    kl_coef: float,
    moments: RunningMoments,
) -> tuple[Experience, dict[str, float]]:
    """KL reward, GAE (or leave-one-out), whitening; and the iteration's `rollout/*` statistics.

    For leave-one-out, `hp.samples_per_prompt` rows in a row answer the same prompt.
    The score goes through: running normalisation → clip → EOS rule → length penalty.
    """
    mask = rollout.response_mask
    kl = kl_k1(rollout.logprobs, rollout.ref_logprobs)
    scores, clipped = shaped_scores(rollout, hp, moments)
    rewards = token_rewards(scores, kl, mask, kl_coef=kl_coef)
    if hp.whiten_rewards:
        rewards = whiten(rewards, mask, center=False)
    if hp.advantage == "rloo":
        advantages, returns = rloo(rewards, mask, samples=hp.samples_per_prompt), rollout.values
    else:
        advantages, returns = gae(
            rewards, rollout.values, mask, gamma=hp.gamma, gae_lambda=hp.gae_lambda
        )
    if hp.whiten_advantages:
        advantages = whiten(advantages, mask)
    statistics = rollout_statistics(rollout) | {
        "rollout/reward": masked_sum(rewards, mask).item() / len(mask),
        "rollout/clipped_scores": clipped,
        "rollout/score_std": rollout.scores.std(correction=0).item(),
    }
    if hp.samples_per_prompt > 1:
        groups = rollout.scores.view(-1, hp.samples_per_prompt)
        statistics["rollout/score_std_within_prompt"] = groups.var(1).mean().sqrt().item()
    if hp.advantage == "gae":
        explained = explained_variance(rollout.values, returns, mask)
        statistics["ppo/explained_variance"] = float(explained)
    experience = Experience(
        prompt_ids=rollout.prompt_ids,
        prompt_mask=rollout.prompt_mask,
        response_ids=rollout.response_ids,
        response_mask=mask,
        logprobs=rollout.logprobs,
        values=rollout.values,
        advantages=advantages,
        returns=returns,
    )
    return experience, statistics


def shaped_scores(rollout: Rollout, hp: PPOConfig, moments: RunningMoments) -> tuple[Tensor, float]:
    """Scores (B,) as the reward uses them, and the share that was clipped."""
    scores, clipped = rollout.scores, 0.0
    if hp.normalize_scores:
        scores = moments.normalize(scores)
    if hp.score_clip is not None:
        scores, share = clip_scores(scores, hp.score_clip)
        clipped = float(share)
    scores = eos_rule(
        scores, rollout.ended, mode=hp.missing_eos, missing_eos_score=hp.missing_eos_score
    )
    return scores - hp.length_penalty * rollout.response_mask.sum(1), clipped


def rollout_statistics(rollout: Rollout) -> dict[str, float]:
    """What the samples look like. KL is summed over a sequence and averaged over samples.

    `rollout/entropy` is the sampled estimate −mean log π of the drawn tokens (unbiased at the sampling temperature).
    """
    mask, pair = rollout.response_mask, (rollout.logprobs, rollout.ref_logprobs)
    return {
        "rollout/score": rollout.scores.mean().item(),
        "rollout/kl_k1": masked_sum(kl_k1(*pair), mask).item() / len(mask),
        "rollout/kl_k3": masked_sum(kl_k3(*pair), mask).item() / len(mask),
        "rollout/response_tokens": mask.sum(1).float().mean().item(),
        "rollout/eos_rate": rollout.ended.float().mean().item(),
        "rollout/entropy": -masked_mean(rollout.logprobs, mask).item(),
    }


def shuffled_minibatches(
    experience: Experience, size: int, generator: torch.Generator, *, group_size: int = 1
) -> list[Experience]:
    """The episodes in random order, `size` at a time; `group_size` that stand in a row stay together."""
    groups = len(experience.response_ids) // group_size
    first = group_size * torch.randperm(groups, generator=generator)
    order = (first[:, None] + torch.arange(group_size)).flatten()
    return [
        experience.rows(chunk.to(experience.response_ids.device)) for chunk in order.split(size)
    ]


def micro_batches(minibatch: Experience, size: int, *, group_size: int = 1) -> list[Experience]:
    """The minibatch by length, `size` episodes at a time, each without needless padding.

    Sorting is allowed only here: losses are normalised by the minibatch's token count, so that the split
    cannot change the gradient.
    """
    prompts, responses = minibatch.prompt_mask.sum(1), minibatch.response_mask.sum(1)
    lengths = prompts + responses
    if group_size > 1:  # whole groups, by their longest
        longest = responses.view(-1, group_size).amax(1).repeat_interleave(group_size)
        lengths = prompts + longest
    order = lengths.argsort(stable=True)
    return [trim(minibatch.rows(chunk)) for chunk in order.split(size)]


def sample_rows(
    rollout: Rollout, prompts: PromptBatch, tokenizer: PreTrainedTokenizerFast, count: int
) -> list[dict[str, Any]]:
    """The first `count` samples as plain values for tables and heat strips."""
    kl = kl_k1(rollout.logprobs, rollout.ref_logprobs)
    rows = []
    for i in range(min(count, len(prompts.records))):
        real = rollout.response_mask[i]
        ids = rollout.response_ids[i][real]
        rows.append(
            {
                "prompt": tokenizer.decode(rollout.prompt_ids[i][rollout.prompt_mask[i]]),
                "response": tokenizer.decode(ids, skip_special_tokens=True),
                "tokens": [tokenizer.decode([t]) for t in ids.tolist()],
                "score": rollout.scores[i].item(),
                "kl_k1": kl[i][real].sum().item(),
                "token_kl_k1": kl[i][real].tolist(),
                "token_value": rollout.values[i][real].tolist(),
            }
        )
    return rows
