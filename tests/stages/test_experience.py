"""A rollout becomes experience: the score's way into the reward, advantages, the numbers of an iteration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_lightning.batches import Experience, Rollout
from rlhf_lightning.config import PPOConfig
from rlhf_lightning.functional.scores import RunningMoments
from rlhf_lightning.stages.rollout import rollout_statistics, shaped_scores, to_experience
from tests.stages.tiny_ppo import HP

KL = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 9.0]])
LOGPROBS = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, 7.0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])
PLAIN = replace(HP, gamma=1.0, gae_lambda=1.0, missing_eos="keep", whiten_advantages=False)
"""The reward is the score minus β·k1, and with V = 0 an advantage is the sum of the rewards that are left."""


def rollout(**changes: Any) -> Rollout:
    """Responses of 3 and 2 tokens, of which the first one ended; V is 1."""
    ids = torch.zeros(2, 3, dtype=torch.long)
    made = Rollout(
        prompt_ids=ids,
        prompt_mask=torch.ones_like(MASK),
        response_ids=ids,
        response_mask=MASK,
        logprobs=LOGPROBS,
        ref_logprobs=LOGPROBS - KL,
        values=MASK.float(),
        scores=torch.tensor([2.0, 5.0]),
        ended=torch.tensor([True, False]),
    )
    return replace(made, **changes)


def experience(
    hp: PPOConfig, made: Rollout, moments: RunningMoments | None = None
) -> tuple[Experience, dict[str, float]]:
    return to_experience(made, hp, kl_coef=0.1, moments=moments or RunningMoments())


def close(got: Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(got, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_an_advantage_holds_the_clipped_score_the_eos_rule_the_length_and_the_kl() -> None:
    """Scores 2 and 5 → 1.5 and 1.5 by the clip → 1.5 and −1 by the EOS rule → 1.47 and −1.02 by the length.

    Rewards −.01, −.02, 1.47 − .03 and −.04, −1.02 − .05. With γ = .9, λ = .5 and V = 1:
    δ = −.11, −.12, .44 and −.14, −2.07 ;  Aₜ = δₜ + .45·Aₜ₊₁.
    """
    hp = replace(
        HP,
        gamma=0.9,
        gae_lambda=0.5,
        score_clip=1.5,
        length_penalty=0.01,
        missing_eos="replace",
        missing_eos_score=-1.0,
        whiten_advantages=False,
    )
    found, told = experience(hp, rollout())
    close(found.advantages, [[-0.0749, 0.078, 0.44], [-1.0715, -2.07, 0.0]])
    close(found.returns, [[0.9251, 1.078, 1.44], [-0.0715, -1.07, 0.0]])
    assert told["rollout/reward"] == pytest.approx((1.41 - 1.11) / 2)
    assert told["rollout/clipped_scores"] == 1
    assert told["rollout/score"] == 3.5  # what the reward model said


def test_kl_is_summed_over_a_response_and_averaged_over_responses() -> None:
    told = rollout_statistics(rollout())
    assert told["rollout/kl_k1"] == pytest.approx((0.6 + 0.9) / 2)
    # k3 = e^(−k1) − 1 + k1: .0048, .0187, .0408 and .0703, .1065
    assert told["rollout/kl_k3"] == pytest.approx((0.0644 + 0.1769) / 2, abs=1e-4)
    assert told["rollout/entropy"] == pytest.approx((1 + 2 + 3 + 4 + 5) / 5)
    assert (told["rollout/response_tokens"], told["rollout/eos_rate"]) == (2.5, 0.5)


def test_scores_are_normalised_before_they_are_clipped() -> None:
    """A variance of 4 halves them: 1 and 2.5, of which 2.5 is above 1.5."""
    moments = RunningMoments(10.0, 7.0, 4.0)
    hp = replace(PLAIN, normalize_scores=True, score_clip=1.5)
    scores, clipped = shaped_scores(rollout(), hp, moments)
    assert scores.tolist() == pytest.approx([1.0, 1.5]) and clipped == 0.5
    scores, clipped = shaped_scores(rollout(), replace(hp, score_clip=None), moments)
    assert scores.tolist() == pytest.approx([1.0, 2.5]) and clipped == 0
    # and these are the scores of the reward
    _, told = experience(hp, rollout(), moments)
    assert told["rollout/reward"] == pytest.approx((1.0 - 0.06 + 1.5 - 0.09) / 2)


def test_a_response_without_eos_may_lose_something_instead_of_all() -> None:
    hp = replace(PLAIN, missing_eos="subtract", missing_eos_score=-0.5)
    scores, _ = shaped_scores(rollout(), hp, RunningMoments())
    assert scores.tolist() == [2.0, 4.5]


def test_whitened_rewards_are_divided_by_their_deviation_and_not_shifted() -> None:
    """Rewards −.01, −.02, 1.97 and −.04, 4.95 (score − β·k1); advantages are sums of those that are left."""
    made = rollout(values=torch.zeros(2, 3))
    spread = torch.tensor([-0.01, -0.02, 1.97, -0.04, 4.95]).std(correction=0).item()
    found, told = experience(replace(PLAIN, whiten_rewards=True), made)
    left = [[1.94, 1.95, 1.97], [4.91, 4.95, 0.0]]
    close(found.advantages, [[x / spread for x in row] for row in left])
    assert told["rollout/reward"] == pytest.approx((1.94 + 4.91) / 2 / spread)


def test_whitened_advantages_have_mean_zero_and_deviation_one_and_leave_returns_alone() -> None:
    made = rollout(values=torch.zeros(2, 3))
    left = torch.tensor([1.94, 1.95, 1.97, 4.91, 4.95])  # as above
    white = ((left - left.mean()) / left.std(correction=0)).tolist()
    found, _ = experience(replace(PLAIN, whiten_advantages=True), made)
    close(found.advantages, [white[:3], [*white[3:], 0.0]])
    close(found.returns, [[1.94, 1.95, 1.97], [4.91, 4.95, 0.0]])
