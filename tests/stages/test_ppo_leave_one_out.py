"""PPO without a value model: k samples of each prompt."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlhf_lightning.batches import Experience, PPOBatch
from rlhf_lightning.functional.scores import RunningMoments
from rlhf_lightning.stages.ppo import PPOModule
from rlhf_lightning.stages.rollout import micro_batches, shuffled_minibatches, to_experience
from tests.stages.tiny_ppo import HP, backward, fit, module
from tests.tiny import prompt_batch


def test_the_spread_of_scores_is_told_over_all_samples_and_within_prompts():
    hp = replace(HP, advantage="rloo", samples_per_prompt=4, episodes_per_iteration=8)
    ppo = module(hp, value=None)
    rollout = ppo.rollout(prompt_batch([4] * 8), ppo.generator)
    rollout = replace(rollout, scores=torch.tensor([0.0, 2, 0, 2, 5, 5, 5, 5]))
    _, told = to_experience(rollout, hp, kl_coef=0.05, moments=RunningMoments())
    # all: two are 3, two 1, four 2 away from the mean; within a prompt: four 1 away, four none
    assert told["rollout/score_std"] == pytest.approx(math.sqrt((16 + 18 + 2) / 8))
    assert told["rollout/score_std_within_prompt"] == pytest.approx(math.sqrt(4 / 3 / 2))


def test_leave_one_out_needs_no_value_model_and_samples_each_prompt_k_times():
    hp = replace(HP, advantage="rloo", samples_per_prompt=4, episodes_per_iteration=8, iterations=2)
    ppo = module(hp, value=None)
    data = [PPOBatch(prompt_batch([3, 5], seed=i)) for i in range(2)]
    seen = fit(ppo, data)
    assert ppo.progress.episodes == 16
    assert "ppo/value_loss" not in seen[0]


def leave_one_out(prompts: list[int], **changes: Any) -> tuple[PPOModule, Experience]:
    """A module for 4 samples of each prompt, and its first rollout."""
    changes |= {"episodes_per_iteration": 4 * len(prompts), "minibatch_size": 4}
    hp = replace(HP, advantage="rloo", samples_per_prompt=4, entropy_coef=0.1, **changes)
    ppo = module(hp, value=None)
    rollout = ppo.rollout(prompt_batch(prompts), ppo.generator, samples=4)
    return ppo, to_experience(rollout, hp, kl_coef=0.05, moments=RunningMoments())[0]


@pytest.mark.parametrize("rows", [4, 8, 12])
def test_an_update_that_computes_a_prompt_once_has_the_same_loss_and_gradient(rows: int) -> None:
    found = {}
    for share in (False, True):
        ppo, experience = leave_one_out([3, 7, 5], share_prompt=share)
        tokens, loss = int(experience.response_mask.sum()), torch.zeros(())
        for micro in micro_batches(experience, rows, group_size=4 if share else 1):
            loss += backward(ppo, micro, tokens)
        gradient = [p.grad.flatten() for p in ppo.policy.parameters() if p.grad is not None]
        found[share] = loss, torch.cat(gradient)
    torch.testing.assert_close(found[True][0], found[False][0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found[True][1], found[False][1], atol=1e-6, rtol=1e-4)
    assert found[True][1].abs().max() > 1e-3


def test_minibatches_and_micro_batches_keep_the_samples_of_a_prompt_together() -> None:
    _, experience = leave_one_out([3, 7, 5, 2, 6, 4])
    generator = torch.Generator().manual_seed(1)
    seen = []
    for minibatch in shuffled_minibatches(experience, 12, generator, group_size=4):
        for micro in micro_batches(minibatch, 8, group_size=4):
            lengths = micro.prompt_mask.sum(1).view(-1, 4)
            assert (lengths == lengths[:, :1]).all()
            seen += lengths[:, 0].tolist()
    assert sorted(seen) == [2, 3, 4, 5, 6, 7] != seen


def test_a_run_that_computes_a_prompt_once_in_updates_computes_fewer_tokens() -> None:
    widths: dict[bool, int] = {}
    for share in (False, True):
        ppo, experience = leave_one_out([20, 20], share_prompt=share)
        tokens: list[int] = []
        ppo.policy.model.register_forward_pre_hook(
            lambda _module, _args, kwargs, tokens=tokens: tokens.append(
                kwargs["input_ids"].numel()
            ),
            with_kwargs=True,
        )
        for micro in micro_batches(experience, 8, group_size=ppo.hp.update_group_size):
            backward(ppo, micro, 1)
        widths[share] = sum(tokens)
        assert widths[share] == (2 * 20 if share else 8 * 20) + experience.response_mask.numel()
