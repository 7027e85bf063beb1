"""The PPO module on tiny random models: invariants, refusal of broken numbers, learning."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf_lightning.batches import PPOBatch
from rlhf_lightning.errors import RunFailed
from rlhf_lightning.functional.losses import policy_loss, value_loss
from rlhf_lightning.functional.scores import RunningMoments
from rlhf_lightning.rewards.text import TextReward
from rlhf_lightning.stages.ppo_losses import check_ratio, ratio_error
from rlhf_lightning.stages.rollout import micro_batches, to_experience
from tests.stages.tiny_ppo import HP, backward, batches, fit, module, weights
from tests.tiny import prompt_batch, tiny_scorer


def test_every_documented_scalar_is_logged_and_finite():
    seen = fit(module())[0]
    expected = {
        f"rollout/{n}"
        for n in "score score_std reward kl_k1 kl_k3 response_tokens eos_rate entropy".split()
    }
    expected |= {
        f"ppo/{n}"
        for n in "policy_loss value_loss clip_fraction approx_kl ratio_max explained_variance grad_norm kl_coef lr".split()
    }
    expected |= {f"time/{n}" for n in "rollout_s update_s tokens_per_s episodes_per_s".split()}
    assert expected <= set(seen)
    assert all(torch.isfinite(torch.tensor(seen[name])) for name in expected)


def test_kl_is_zero_and_the_ratio_is_one_before_the_first_update():
    first = fit(module(replace(HP, iterations=1, epochs=1, minibatch_size=8, micro_batch_size=8)))[
        0
    ]
    assert abs(first["rollout/kl_k1"]) < 1e-4
    assert abs(first["ppo/ratio_max"] - 1) < 1e-4


@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_never_change_the_gradient(size):
    """Accumulating 8 × 1 equals 1 × 8: losses are normalised by the minibatch's tokens."""
    ppo = module(replace(HP, minibatch_size=8, micro_batch_size=8))
    rollout = ppo.rollout(batches(1)[0].prompts, ppo.generator)
    experience, _ = to_experience(rollout, HP, kl_coef=0.05, moments=RunningMoments())
    tokens = int(experience.response_mask.sum())

    def gradient(rows: int) -> torch.Tensor:
        ppo.zero_grad()
        for micro in micro_batches(experience, rows):
            backward(ppo, micro, tokens)
        return torch.cat([p.grad.flatten() for p in ppo.parameters() if p.grad is not None])

    torch.testing.assert_close(gradient(size), gradient(8), atol=1e-6, rtol=1e-4)


def test_left_padding_and_padding_contents_never_change_the_losses():
    ppo = module()
    plain = batches(1)[0].prompts
    rollout = ppo.rollout(plain, torch.Generator().manual_seed(5))
    experience, _ = to_experience(rollout, HP, kl_coef=0.05, moments=RunningMoments())
    wider = replace(
        experience,
        prompt_ids=torch.nn.functional.pad(experience.prompt_ids, (4, 0), value=9),
        prompt_mask=torch.nn.functional.pad(experience.prompt_mask, (4, 0)),
        response_ids=experience.response_ids.masked_fill(~experience.response_mask, 11),
        advantages=experience.advantages.masked_fill(~experience.response_mask, float("nan")),
        returns=experience.returns.masked_fill(~experience.response_mask, float("nan")),
    )
    tokens = int(experience.response_mask.sum())
    a, b = backward(ppo, experience, tokens), backward(ppo, wider, tokens)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_clipped_policy_loss_plus_the_weighted_value_loss():
    ppo = module()
    rollout = ppo.rollout(batches(1)[0].prompts, ppo.generator)
    experience, _ = to_experience(rollout, HP, kl_coef=0.05, moments=RunningMoments())
    tokens = int(experience.response_mask.sum())
    loss = backward(ppo, experience, tokens)
    mask = experience.response_mask
    expected, _ = policy_loss(
        experience.logprobs,
        experience.logprobs,
        experience.advantages,
        mask,
        clip_range=0.2,
        normalizer=tokens,
    )
    critic, _ = value_loss(
        experience.values,
        experience.values,
        experience.returns,
        mask,
        clip_range=0.2,
        normalizer=tokens,
    )
    torch.testing.assert_close(loss, expected + 0.1 * critic, atol=1e-5, rtol=1e-5)


def test_a_ratio_that_is_not_one_stops_the_run():
    ppo = module()
    ppo.sampling.temperature = 0.5  # sampling no longer agrees with the update
    with pytest.raises(RunFailed, match="policy ratio differs from 1"):
        fit(ppo)


@pytest.mark.parametrize(
    ("dtype", "moved", "fails"),
    [
        (torch.float32, (9e-5, 0.0, 0.0, 0.0), False),
        (torch.float32, (2e-4, 0.0, 0.0, 0.0), True),
        (torch.bfloat16, (0.3, 0.0, 0.0, 0.0), False),  # one token's rounding
        (torch.bfloat16, (0.3, -0.3, 0.3, -0.3), True),
        (torch.bfloat16, (float("nan"), 0.0, 0.0, 0.0), True),
    ],
)
def test_the_ratio_may_be_off_by_rounding_only(dtype: torch.dtype, moved: tuple, fails: bool):
    zeros, real = torch.zeros(1, 5), torch.tensor([[True, True, True, True, False]])
    micro: Any = SimpleNamespace(logprobs=zeros, response_mask=real)
    logprobs = torch.tensor([[*moved, 7.0]])  # the last one is padding
    error = ratio_error(logprobs, micro, dtype=dtype, tokens=4).item()
    with pytest.raises(RunFailed, match="differs from 1") if fails else nullcontext():
        check_ratio(error, dtype=dtype, allowed=None, where="here")


def test_a_score_that_is_not_finite_stops_the_run_before_any_update():
    ppo = module(reward=TextReward(lambda prompt, response: float("nan")))
    before = weights(ppo)
    with pytest.raises(RunFailed, match="iteration 0: the score is nan"):
        fit(ppo)
    assert torch.equal(before, weights(ppo))


def test_reference_and_reward_never_move_and_are_not_in_the_state():
    ppo = module(reward=tiny_reward())
    frozen = (ppo.reference, ppo.reward)
    before = [copy.deepcopy(model.state_dict()) for model in frozen]
    policy = weights(ppo).clone()
    fit(ppo)
    assert not torch.equal(policy, weights(ppo))
    for model, state in zip(frozen, before, strict=True):
        assert all(torch.equal(state[k], v) for k, v in model.state_dict().items()) and state
    assert all(name.startswith(("policy.", "value.")) for name in ppo.state_dict())


def tiny_reward():
    from rlhf_lightning.rewards.learned import LearnedReward

    return LearnedReward(tiny_scorer(3).eval())


def gain(iterations: int, episodes: int, seed: int, *, lr: float, ends: int) -> float:
    """By how much the mean score of the last `ends` iterations is above that of the first ones."""
    sizes = {"episodes_per_iteration": episodes, "rollout_batch_size": episodes}
    minibatches = {"minibatch_size": 16, "micro_batch_size": 16}
    hp = replace(HP, iterations=iterations, kl_coef=0.01, **sizes, **minibatches)
    prompts = (prompt_batch([4] * episodes, seed=100 * seed + i) for i in range(iterations))
    optimizer = partial(torch.optim.Adam, lr=lr, eps=1e-5)
    seen = fit(module(hp, seed=seed, optimizer=optimizer), [PPOBatch(p) for p in prompts])
    scores = [s["rollout/score"] for s in seen if "rollout/score" in s]
    assert len(scores) == iterations
    return sum(scores[-ends:]) / ends - sum(scores[:ends]) / ends


def test_ppo_raises_a_known_reward_a_little() -> None:
    """Six seeds gain 0.88 to 1.6; without learning (lr = 1e-9) none gains more than 0.1."""
    assert gain(8, 64, 0, lr=1e-2, ends=2) > 0.4


@pytest.mark.slow
def test_ppo_raises_a_known_reward() -> None:
    """Thirty iterations on 'say t7, be short': every one of four seeds gains more than 0.5."""
    for seed in range(4):
        assert gain(30, 32, seed, lr=1e-3, ends=5) > 0.5
