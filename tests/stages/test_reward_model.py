"""The reward module on tiny random models: all pairs of a prompt, whole and in pieces."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_lightning.batches import ComparisonBatch
from rlhf_lightning.config import RewardConfig, ScheduleConfig
from rlhf_lightning.data.collate import collate_comparisons
from rlhf_lightning.data.records import pairs_of
from rlhf_lightning.models.forward import sequence_scores
from rlhf_lightning.stages.reward_model import RewardModule
from tests.tiny import PAD, VOCAB, tiny_scorer
from tests.training import fit, gradient, validate

FAMILIES = ("llama", "gpt2")
HP = RewardConfig(global_batch_size=8, micro_batch_size=8)
RANKS = (
    [0, 1, 2, 3],
    [1, 0, 1, 2, 0],
    [0, 0, 0, 0],  # all tied: no pair
    [3, 2, 1, 0, 4, 4],
    [0, 1, 1, 1],
    [0, 1],
    [2, 0, 1, 3, 4, 5, 6, 7, 8],
    [0, 0, 1, 1],
)
"""Of eight prompts, K = 2..9."""


def records() -> list[dict[str, Any]]:
    return [{"completions": ["?"] * len(ranks), "ranks": list(ranks)} for ranks in RANKS]


def comparisons() -> ComparisonBatch:
    generator = torch.Generator().manual_seed(0)

    def tokens(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(3, VOCAB, (length,), generator=generator).tolist()

    items = [(tokens(2, 6), [tokens(1, 8) for _ in r["ranks"]], r) for r in records()]
    return collate_comparisons(items, PAD)


def module(family: str = "llama", hp: RewardConfig = HP, *, total_steps: int = 1) -> RewardModule:
    optimizer = partial(torch.optim.SGD, lr=0.1)
    return RewardModule(hp, tiny_scorer(family=family), optimizer, total_steps=total_steps)


def all_scores(reward: RewardModule, batch: ComparisonBatch) -> list[float]:
    """Each completion scored by itself."""
    rows = [row[mask][None] for row, mask in zip(batch.ids, batch.mask, strict=True)]
    with torch.no_grad():
        return [
            sequence_scores(reward.model, row, torch.ones_like(row).bool()).item() for row in rows
        ]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_all_pairs_by_hand(family: str) -> None:
    """−(1/|P|) Σ log σ(s_w − s_l) of each prompt, the mean over the seven that have a pair."""
    reward, batch = module(family), comparisons()
    scores, start, losses = all_scores(reward, batch), 0, []
    for ranks in RANKS:
        mine = scores[start : start + len(ranks)]
        pairs = [
            math.log(1 + math.exp(mine[j] - mine[i]))
            for i in range(len(ranks))
            for j in range(len(ranks))
            if ranks[i] < ranks[j]
        ]
        losses += [sum(pairs) / len(pairs)] if pairs else []
        start += len(ranks)
    assert len(losses) == 7 == batch.prompts
    together = sequence_scores(reward.model, batch.ids, batch.mask)
    loss = reward.loss(together, batch, prompts=batch.prompts)
    assert loss.item() == pytest.approx(sum(losses) / 7, rel=1e-4)


def test_margin_label_smoothing_and_centering_are_those_of_the_config() -> None:
    """With d = s_w − s_l − 0.3·ranks: a pair costs −0.9 log σ(d) − 0.1 log σ(−d) + 0.02·((s_w + s_l)/2)²."""
    reward = module(hp=replace(HP, margin=0.3, label_smoothing=0.1, centering=0.02))
    batch, losses, start = comparisons(), 0.0, 0
    scores = torch.linspace(-1.5, 2.0, len(batch.ids))
    for ranks in RANKS:
        mine, places = scores[start : start + len(ranks)].tolist(), sorted(set(ranks))
        costs = []
        for w, l in itertools.permutations(range(len(ranks)), 2):  # noqa: E741
            if ranks[w] < ranks[l]:
                apart = places.index(ranks[l]) - places.index(ranks[w])
                d = mine[w] - mine[l] - 0.3 * apart
                cost = 0.9 * math.log(1 + math.exp(-d)) + 0.1 * math.log(1 + math.exp(d))
                costs.append(cost + 0.02 * ((mine[w] + mine[l]) / 2) ** 2)
        losses += sum(costs) / len(costs) if costs else 0.0
        start += len(ranks)
    loss = reward.loss(scores, batch, prompts=batch.prompts)
    assert loss.item() == pytest.approx(losses / 7, rel=1e-5)


@pytest.mark.parametrize("prompts", [1, 2, 3, 5, 8, 99])
def test_micro_batches_keep_every_completion_and_every_pair(prompts: int) -> None:
    batch = comparisons()

    def text(part: ComparisonBatch, row: int) -> tuple[int, ...]:
        return tuple(part.ids[row][part.mask[row]].tolist())

    def pairs(part: ComparisonBatch) -> list[tuple[Any, ...]]:
        return [
            (text(part, int(w)), text(part, int(x)), float(weight), float(margin))
            for (w, x), weight, margin in zip(part.pairs, part.weights, part.margins, strict=True)
        ]

    parts = list(batch.micro_batches(prompts))
    assert len(parts) == math.ceil(8 / prompts)
    assert [p for part in parts for p in pairs(part)] == pairs(batch)
    assert len(batch.pairs) == sum(len(pairs_of(r)[0]) for r in records())
    rows = [text(part, i) for part in parts for i in range(len(part.ids))]
    assert rows == [text(batch, i) for i in range(len(batch.ids))]
    assert sum(part.prompts for part in parts) == batch.prompts == 7
    assert [r for part in parts for r in part.records] == batch.records
    assert all(part.mask.any(0).all() for part in parts)  # trimmed to the longest of its own
    for part in parts:
        assert part.group.unique().tolist() == list(range(len(part.records)))


@pytest.mark.parametrize("prompts", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_micro_batches_never_change_the_gradient(family: str, prompts: int) -> None:
    """Accumulating 8 × 1 equals 1 × 8, though K and the pairs differ from prompt to prompt."""
    hp = replace(HP, margin=0.1, centering=0.01, label_smoothing=0.1)
    reward, batch = module(family, hp), comparisons()

    def loss(part: ComparisonBatch) -> Tensor:
        scores = sequence_scores(reward.model, part.ids, part.mask)
        return reward.loss(scores, part, prompts=batch.prompts)

    def accumulated(size: int) -> Tensor:
        return gradient(reward, (loss(part) for part in batch.micro_batches(size)))

    torch.testing.assert_close(accumulated(prompts), accumulated(8), atol=1e-6, rtol=1e-4)


def test_a_training_step_is_the_same_whatever_the_micro_batch() -> None:
    ends, logged = [], []
    for size in (8, 1):
        reward = module(hp=replace(HP, micro_batch_size=size))
        logged.append(fit(reward, [comparisons()])[0])
        ends.append(torch.cat([p.detach().flatten() for p in reward.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], atol=1e-6, rtol=1e-5)
    for name in ("loss", "accuracy", "grad_norm"):
        assert logged[0][f"reward/train/{name}"] == pytest.approx(
            logged[1][f"reward/train/{name}"], rel=1e-4
        )


def test_accuracy_is_the_share_of_pairs_in_the_labelers_order() -> None:
    reward, batch = module(), comparisons()
    scores = all_scores(reward, batch)
    right = sum(scores[w] > scores[x] for w, x in batch.pairs.tolist())
    assert fit(reward, [batch])[0]["reward/train/accuracy"] == right / len(batch.pairs)


@pytest.mark.parametrize("size", [1, 8])
def test_a_validation_counts_every_pair_once_and_every_prompt_alike(size: int) -> None:
    """Batches of a prompt with three pairs and of two prompts with one each, beside one without any."""
    texts = [[[7], [8, 9], [10]], [[11], [12]], [[13], [14, 15]], [[16], [17]]]
    ranks = [[0, 1, 2], [0, 1], [0, 0], [1, 0]]
    items = [
        ([5, 6], completions, {"completions": [""] * len(order), "ranks": order})
        for completions, order in zip(texts, ranks, strict=True)
    ]
    found = [collate_comparisons(items[:1], PAD), collate_comparisons(items[1:], PAD)]
    reward = module(hp=replace(HP, micro_batch_size=size))
    a, b, c, d, e, _, _, f, g = (s for batch in found for s in all_scores(reward, batch))
    prompts = [[a - b, a - c, b - c], [d - e], [g - f]]  # winner minus loser
    right = sum(difference > 0 for pairs in prompts for difference in pairs)
    assert 0 < right < 5
    losses = [sum(math.log(1 + math.exp(-x)) for x in pairs) / len(pairs) for pairs in prompts]
    logged = validate(reward, found)
    assert logged["reward/val/pairwise_accuracy"] == reward.val_accuracy == right / 5
    assert logged["reward/val/loss"] == pytest.approx(sum(losses) / 3, rel=1e-4)


def test_a_validation_in_which_labelers_decided_nothing_has_no_accuracy() -> None:
    """It was 0, that of the worst model there is."""
    tied = {"completions": ["", ""], "ranks": [0, 0]}
    reward = module()
    reward.val_accuracy = 0.75
    validate(reward, [collate_comparisons([([5, 6], [[7], [8, 9]], tied)], PAD)])
    assert math.isnan(reward.val_accuracy)


def test_equal_scores_are_half_right() -> None:
    reward = module()
    reward.model.score.weight.data.zero_()
    assert fit(reward, [comparisons()])[0]["reward/train/accuracy"] == 0.5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_prompt_computed_once_gives_the_same_scores_and_gradient(
    family: str, attention: str
) -> None:
    reward = module(family, replace(HP, share_prompt=True))
    reward.model.set_attn_implementation(attention)
    plain = RewardModule(HP, reward.model, reward.make_optimizer, total_steps=1)
    batch = comparisons()
    torch.testing.assert_close(reward.scores(batch), plain.scores(batch), rtol=1e-5, atol=1e-5)
    prompts = batch.prompts
    shared = gradient(
        reward, (reward.loss(reward.scores(m), m, prompts=prompts) for m in batch.micro_batches(3))
    )
    alone = gradient(plain, [plain.loss(plain.scores(batch), batch, prompts=prompts)])
    torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-6)


def test_a_prompt_computed_once_takes_one_row_of_prompt_and_completions() -> None:
    """Prompts of 2 and 3 tokens with completions of 1 + 2 and 2 + 2 tokens: 5 and 7 tokens instead of 3 + 4 and 5 + 5."""
    items = [
        ([5, 6], [[7], [8, 9]], {"completions": ["", ""], "ranks": [0, 1]}),
        ([5, 6, 7], [[8, 9], [3, 4]], {"completions": ["", ""], "ranks": [0, 1]}),
    ]
    seen: list[tuple[int, ...]] = []
    reward = module(hp=replace(HP, share_prompt=True))
    reward.model.model.embed_tokens.register_forward_hook(
        lambda _, args, out: seen.append(tuple(args[0].shape))
    )
    reward.scores(collate_comparisons(items, PAD))
    assert seen == [(2, 7)]


def test_a_batch_without_comparisons_takes_no_step() -> None:
    """What was too long may leave a batch empty."""
    reward = module()
    before = [p.clone() for p in reward.model.parameters()]
    assert fit(reward, [collate_comparisons([], PAD)]) == []
    assert all(map(torch.equal, reward.model.parameters(), before))


def test_the_learning_rate_falls_from_step_to_step() -> None:
    """Linear to 0 over 4 steps: 1, ¾, ½ and ¼ of the rate."""
    linear = ScheduleConfig(name="linear", final_fraction=0.0)
    reward = module(hp=replace(HP, schedule=linear), total_steps=4)
    rates = [seen["reward/train/lr"] for seen in fit(reward, [comparisons()] * 4)]
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])
