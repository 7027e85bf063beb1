"""The reward module on tiny random models: all pairs of a prompt, whole and in pieces."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from rlhf_lightning.batches import ComparisonBatch
from rlhf_lightning.config import RewardConfig
from rlhf_lightning.data.collate import collate_comparisons
from rlhf_lightning.data.records import pairs_of
from rlhf_lightning.models.forward import sequence_scores
from rlhf_lightning.stages.reward_model import RewardModule
from tests.tiny import PAD, VOCAB, tiny_scorer
from tests.training import fit, gradient

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


def module(family: str = "llama", hp: RewardConfig = HP) -> RewardModule:
    optimizer = partial(torch.optim.SGD, lr=0.1)
    return RewardModule(hp, tiny_scorer(family=family), optimizer, total_steps=1)


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


def test_a_validation_in_which_labelers_decided_nothing_has_no_accuracy() -> None:
    """It was 0, that of the worst model there is."""
    tied = {"completions": ["", ""], "ranks": [0, 0]}
    reward = module()
    reward.val_accuracy = 0.75
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    batch = collate_comparisons([([5, 6], [[7], [8, 9]], tied)], PAD)
    trainer.validate(reward, DataLoader([batch], batch_size=None), verbose=False)  # type: ignore[arg-type]
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
