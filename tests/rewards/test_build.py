"""Ensembles and weighted sums by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from rlhf_lightning.config import RewardPartConfig, RewardSourceConfig
from rlhf_lightning.models.loading import frozen
from rlhf_lightning.rewards.base import taken_statistics
from rlhf_lightning.rewards.build import build_reward
from rlhf_lightning.rewards.learned import EnsembleReward, LearnedReward, combined_scores
from rlhf_lightning.rewards.text import TextReward
from tests.rewards.requests import request, tokenizer
from tests.tiny import tiny_scorer

MINE = "tests.rewards.mine"
SCORES = torch.tensor([[1.0, 0.0], [3.0, 0.0], [8.0, 0.0]])
"""Three members, two responses; of the first: mean 4, σ² = (9 + 1 + 16)/3."""


@pytest.mark.parametrize(
    ("combine", "coef", "expected"),
    [
        ("mean", 1.0, 4.0),
        ("worst", 1.0, 1.0),
        ("uncertainty", 0.0, 4.0),
        ("uncertainty", 0.5, 4 - 0.5 * math.sqrt(26 / 3)),
    ],
)
def test_members_are_combined_as_the_formulas_say(
    combine: str, coef: float, expected: float
) -> None:
    found = combined_scores(SCORES, combine=combine, coef=coef)
    torch.testing.assert_close(found, torch.tensor([expected, 0.0]))


def test_another_way_to_combine_is_refused() -> None:
    with pytest.raises(
        ValueError, match="combine must be one of mean, worst, uncertainty, got 'x'"
    ):
        combined_scores(SCORES, combine="x", coef=1.0)


def scorer(seed: int) -> nn.Module:
    model = tiny_scorer(seed)
    model.resize_token_embeddings(300)
    return frozen(model)


def test_an_ensemble_is_its_members_combined_and_tells_how_they_differ() -> None:
    ask, models = request(tokenizer()), [scorer(i) for i in range(3)]
    alone = torch.stack([LearnedReward(model)(ask) for model in models])  # (3, 3)
    assert alone.std(0).min() > 0
    reward = EnsembleReward(models, combine="worst", coef=1.0)
    torch.testing.assert_close(reward(ask), alone.min(0).values)
    reward(ask)
    mean_sd = ((alone - alone.mean(0)) ** 2).mean(0).sqrt().mean().item()
    assert reward.take_statistics() == {"std_members": pytest.approx(mean_sd)}
    assert reward.take_statistics() == {}  # asked again: nothing was scored since


@pytest.mark.parametrize("share_prompt", [False, True])
def test_a_response_that_was_cut_off_is_read_as_one_that_ends_there(share_prompt: bool) -> None:
    """As the reward model learned: completions of a comparison always end with EOS.

    Two are cut, one of them the longest, so that its EOS needs a column more; the third has ended.
    """
    whole = replace(request(tokenizer()), share_prompt=share_prompt)
    width = int(whole.response_mask.sum(1).max()) - 1
    ids, mask = whole.response_ids.clone(), whole.response_mask.clone()
    assert mask.sum(1).argmax() == 2
    for row in (0, 2):
        end = int(mask[row].sum()) - 1
        ids[row, end], mask[row, end] = 7, False  # not even under the padding
    cut = replace(whole, response_ids=ids[:, :width], response_mask=mask[:, :width])
    plain = LearnedReward(scorer(0))
    assert (plain(cut) - plain(whole)).abs()[[0, 2]].min() > 1e-4
    source = RewardSourceConfig(
        parts={"mine": RewardPartConfig(kind="learned", members=2, end_with_eos=True)}
    )
    built = build_reward(source, lambda _role: scorer(0))
    alone = RewardSourceConfig(parts={"mine": RewardPartConfig(kind="learned", end_with_eos=True)})
    for reward in (
        LearnedReward(scorer(0), end_with_eos=True),
        built,
        build_reward(alone, lambda _role: scorer(0)),
    ):
        torch.testing.assert_close(reward(cut), plain(whole))
        torch.testing.assert_close(reward(whole), plain(whole))


def test_the_score_is_the_weighted_sum_of_its_parts() -> None:
    source = RewardSourceConfig(
        parts={
            "learned": RewardPartConfig(kind="learned", weight=2.0),
            "words": RewardPartConfig(target=f"{MINE}.words", args={"each": 0.1}, weight=-3.0),
            "row": RewardPartConfig(target=f"{MINE}.of_row"),
        }
    )
    ask, model, asked = request(tokenizer()), scorer(0), []

    def learned(role: str) -> nn.Module:
        asked.append(role)
        return model

    reward = build_reward(source, learned)
    own = LearnedReward(model)(ask)
    # 4, 1 and 6 words; rows 0, 1, 2
    expected = 2 * own - 3 * torch.tensor([0.4, 0.1, 0.6]) + torch.tensor([0.0, 1.0, 2.0])
    torch.testing.assert_close(reward(ask), expected)
    assert asked == ["reward"]
    assert taken_statistics(reward, "rollout") == {
        "rollout/score_learned": pytest.approx(own.mean().item()),
        "rollout/score_words": pytest.approx(1.1 / 3),
        "rollout/score_row": pytest.approx(1.0),
    }


def test_a_learned_part_alone_is_the_reward_model_to_the_bit() -> None:
    ask, model = request(tokenizer()), scorer(0)
    reward = build_reward(RewardSourceConfig(), lambda role: model)
    assert torch.equal(reward(ask), LearnedReward(model)(ask))
    assert taken_statistics(reward, "rollout") == {}


def test_without_a_learned_part_no_reward_model_is_asked_for() -> None:
    def never(role: str) -> nn.Module:
        raise AssertionError(role)

    source = RewardSourceConfig(parts={"f": RewardPartConfig(target=f"{MINE}.words")})
    assert build_reward(source, never)(request(tokenizer())).tolist() == [4, 1, 6]
    assert source.learned is None and source.roles == []


def test_each_member_is_asked_for_by_its_role() -> None:
    part = RewardPartConfig(kind="learned", members=3, combine="worst")
    source, asked = RewardSourceConfig(parts={"learned": part}), []
    build_reward(source, lambda role: asked.append(role) or scorer(0))
    assert asked == source.roles == ["reward", "reward.1", "reward.2"]


def test_a_reward_that_tells_nothing_is_asked_nothing() -> None:
    assert taken_statistics(TextReward(lambda prompt, response: 0.0), "rollout") == {}


def test_a_reward_model_in_use_has_the_bias_and_gain_of_its_config() -> None:
    ask, model = request(tokenizer()), scorer(0)
    raw = LearnedReward(model)(ask)
    model.config.reward_bias, model.config.reward_gain = 0.5, 2.0  # type: ignore[union-attr]
    torch.testing.assert_close(LearnedReward(model)(ask), (raw - 0.5) * 2)
