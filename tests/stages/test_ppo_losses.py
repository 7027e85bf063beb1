"""The losses of a PPO micro-batch against the same ones written out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rlhf_lightning.batches import Experience
from rlhf_lightning.config import PPOConfig
from rlhf_lightning.functional.scores import RunningMoments
from rlhf_lightning.models.forward import response_logits, token_values
from rlhf_lightning.stages.ppo import PPOModule
from rlhf_lightning.stages.ppo_losses import actor_losses, critic_loss
from rlhf_lightning.stages.rollout import to_experience
from tests.stages.tiny_ppo import HP, backward, batches, module

OTHERS = replace(HP, clip_range=0.3, value_clip_range=0.4, value_coef=0.25)
"""None is a default."""


def moved(hp: PPOConfig = OTHERS) -> tuple[PPOModule, Experience]:
    """A module that has doubled every probability and added 1 to every value since its experience was made."""
    ppo = module(hp)
    rollout = ppo.rollout(batches(1)[0].prompts, ppo.generator)
    experience, _ = to_experience(rollout, hp, kl_coef=0.05, moments=RunningMoments())
    return ppo, replace(
        experience, logprobs=experience.logprobs - math.log(2), values=experience.values - 1
    )


def sequence(experience: Experience) -> tuple[Tensor, ...]:
    names = ("prompt_ids", "prompt_mask", "response_ids", "response_mask")
    return tuple(getattr(experience, name) for name in names)


def all_logprobs(ppo: PPOModule, experience: Experience, *, temperature: float = 1.0) -> Tensor:
    """Of every token of the vocabulary at every place of a response, (B, R, V)."""
    logits = response_logits(ppo.policy, *sequence(experience))
    return (logits / temperature).log_softmax(-1)


def of_the_responses(logprobs: Tensor, experience: Experience) -> Tensor:
    return logprobs.gather(2, experience.response_ids[:, :, None])[:, :, 0]


def mean_entropy(logprobs: Tensor, experience: Experience) -> Tensor:
    return -(logprobs.exp() * logprobs).sum(-1)[experience.response_mask].mean()


def taken_gradient(model: nn.Module) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return found


def test_where_a_probability_doubled_a_good_token_is_clipped_and_a_bad_one_is_not() -> None:
    """ρ = 2: max(−A·ρ, −A·1.3) is −1.3·A without a gradient where A > 0, and −A·ρ where A < 0."""
    ppo, experience = moved(replace(OTHERS, value_coef=0.0))
    real = experience.response_mask
    loss = backward(ppo, experience, int(real.sum()))
    found = taken_gradient(ppo.policy)
    new = of_the_responses(all_logprobs(ppo, experience), experience)
    ratio, advantages = (new - experience.logprobs).exp(), experience.advantages
    assert (ratio[real] - 2).abs().max() < 1e-3
    expected = torch.where(advantages > 0, -1.3 * advantages, -advantages * ratio)[real].mean()
    torch.testing.assert_close(loss, expected.detach(), atol=1e-5, rtol=1e-4)
    expected.backward()
    torch.testing.assert_close(found, taken_gradient(ppo.policy), atol=1e-6, rtol=1e-4)


def test_a_value_that_rose_by_one_is_clipped_and_its_loss_weighted() -> None:
    """V = V_old + 1. Where R = V_old the error is 1² and not 0.4²; where R = V_old + 2 it is 1.6², without a gradient."""
    ppo, experience = moved()
    old, real = experience.values, experience.response_mask
    rows = torch.tensor([0.0, 2.0]).repeat(4)[:, None]  # (8, 1)
    experience = replace(experience, returns=old + rows)
    backward(ppo, experience, int(real.sum()))
    found = taken_gradient(ppo.value)
    plain = (token_values(ppo.value, *sequence(experience)) - old) ** 2
    errors = torch.where(rows == 0, plain, 1.6**2)[real]
    (0.25 * 0.5 * errors.mean()).backward()
    torch.testing.assert_close(found, taken_gradient(ppo.value), atol=1e-6, rtol=1e-4)
    _, told = critic_loss(ppo.value, experience, ppo.hp, tokens=int(real.sum()))
    expected = 0.5 * torch.where(rows == 0, 1.0, 1.6**2).expand_as(real)[real].mean()
    torch.testing.assert_close(told["value_loss"], expected, atol=1e-5, rtol=1e-5)


def test_entropy_is_taken_off_the_loss_times_its_coefficient() -> None:
    ppo, experience = moved()
    tokens = int(experience.response_mask.sum())
    losses = [
        actor_losses(ppo.policy, experience, replace(OTHERS, entropy_coef=coef), tokens=tokens)[0]
        for coef in (0.0, 0.3)
    ]
    entropy = mean_entropy(all_logprobs(ppo, experience), experience).item()
    assert (losses[1] - losses[0]).item() == pytest.approx(-0.3 * entropy, rel=1e-4)


def test_the_temperature_divides_the_logits_of_the_update() -> None:
    ppo, experience = moved()
    hp = replace(OTHERS, temperature=0.7, entropy_coef=0.1)
    tokens = int(experience.response_mask.sum())
    _, found, told = actor_losses(ppo.policy, experience, hp, tokens=tokens)
    logprobs = all_logprobs(ppo, experience, temperature=0.7)
    expected = of_the_responses(logprobs, experience)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert told["entropy"].item() == pytest.approx(
        mean_entropy(logprobs, experience).item(), rel=1e-5
    )
