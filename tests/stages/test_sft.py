"""The SFT module on tiny random models: packing, accumulation, the loss."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rlhf_lightning.batches import SFTBatch
from rlhf_lightning.config import ScheduleConfig, SFTConfig
from rlhf_lightning.data.collate import Encoded, pack
from rlhf_lightning.models.forward import packed_logits
from rlhf_lightning.stages.sft import SFTModule
from tests.tiny import PAD, VOCAB, tiny_policy
from tests.training import fit, gradient

FAMILIES = ("llama", "gpt2")
HP = SFTConfig(global_batch_size=8, micro_batch_size=8, max_length=16)


def documents(lengths: list[int], seed: int = 0) -> list[Encoded]:
    """Random tokens, of which about half are targets, never the first."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        ids = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        mask = (torch.rand(length, generator=generator) < 0.5).tolist()
        made.append(Encoded(ids, [False, *mask[1:-1], True]))
    return made


def module(family: str = "llama", hp: SFTConfig = HP, *, total_steps: int = 1) -> SFTModule:
    optimizer = partial(torch.optim.SGD, lr=0.1)
    return SFTModule(hp, tiny_policy(family=family), optimizer, total_steps=total_steps)


def rows_of_one(made: list[Encoded]) -> SFTBatch:
    """The same documents, one a row."""
    width = max(len(d.ids) for d in made)
    alone = [pack([d], width, PAD) for d in made]

    def stacked(name: str) -> Tensor:
        parts = [getattr(batch, name) for batch in alone]
        return torch.cat([torch.nn.functional.pad(p, (0, width - p.shape[1])) for p in parts])

    return SFTBatch(*map(stacked, ("ids", "loss_mask", "positions", "documents")))


def test_a_batch_without_examples_takes_no_step() -> None:
    sft = module()
    before = [p.clone() for p in sft.model.parameters()]
    assert fit(sft, [pack([], 16, PAD)]) == []
    assert all(map(torch.equal, sft.model.parameters(), before))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packing_changes_no_documents_logits(family: str, attention: str) -> None:
    model = tiny_policy(family=family).eval()
    model.set_attn_implementation(attention)
    made = documents([9, 7, 5, 4, 3, 3])
    batch = pack(made, 16, PAD)
    assert len(batch.ids) == 2  # 31 tokens in two rows of 16
    packed = packed_logits(model, batch)
    found = {}
    for row in range(len(batch.ids)):
        for number in range(1, int(batch.documents[row].max()) + 1):
            here = batch.documents[row] == number
            found[tuple(batch.ids[row][here].tolist())] = packed[row][here]
    for document in made:
        alone = model(torch.tensor([document.ids])).logits[0]
        torch.testing.assert_close(found[tuple(document.ids)], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_mean_over_the_targets_of_all_documents(family: str) -> None:
    made, sft = documents([9, 7, 5, 4, 3, 3]), module(family)
    losses = []
    for document in made:
        logits = sft.model(torch.tensor([document.ids])).logits[0, :-1]
        each = cross_entropy(logits, torch.tensor(document.ids[1:]), reduction="none")
        losses += each[torch.tensor(document.loss_mask[1:])].tolist()
    loss = sft.loss(pack(made, 16, PAD), normalizer=len(losses))
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_micro_batches_never_change_the_gradient(family: str, rows: int) -> None:
    """Accumulating 8 × 1 equals 1 × 8, though the rows have unlike numbers of targets."""
    batch = rows_of_one(documents([12, 3, 7, 5, 9, 4, 11, 6]))
    targets = batch.loss_mask.sum(1)
    assert len(targets.unique()) > 2
    sft = module(family)

    def accumulated(size: int) -> Tensor:
        parts = batch.micro_batches(size)
        return gradient(sft, (sft.loss(part, normalizer=int(targets.sum())) for part in parts))

    torch.testing.assert_close(accumulated(rows), accumulated(8), atol=1e-6, rtol=1e-4)


def test_a_training_step_is_the_same_whatever_the_micro_batch() -> None:
    """SGD: θ − 0.1·g, clipped after all micro-batches; not after each."""
    batch = rows_of_one(documents([12, 3, 7, 5, 9, 4, 11, 6]))
    ends = []
    for size in (8, 1):
        sft = module(hp=replace(HP, micro_batch_size=size, grad_clip=0.5))
        fit(sft, [batch])
        ends.append(torch.cat([p.detach().flatten() for p in sft.parameters()]))
    start = torch.cat([p.detach().flatten() for p in module().parameters()])
    assert (ends[0] - start).norm() == pytest.approx(0.1 * 0.5, rel=1e-3)
    torch.testing.assert_close(ends[0], ends[1], atol=1e-6, rtol=1e-5)


def test_the_learning_rate_falls_from_step_to_step() -> None:
    """Linear to 0 over 4 steps: 1, ¾, ½ and ¼ of the rate."""
    linear = ScheduleConfig(name="linear", final_fraction=0.0)
    sft = module(hp=replace(HP, schedule=linear), total_steps=4)
    logged = fit(sft, [pack(documents([9, 7]), 16, PAD)] * 4)
    rates = [seen["sft/train/lr"] for seen in logged]
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])
