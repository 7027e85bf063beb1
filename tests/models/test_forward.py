"""Padding never changes what is read at real tokens, whatever the architecture."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from rlhf_lightning.models.adapters import AdapterView, TrunkScorer, backbone
from rlhf_lightning.models.forward import (
    response_logits,
    sequence_scores,
    token_values,
    uncompiled,
)
from rlhf_lightning.models.generation import sample
from tests.tiny import VOCAB, prompt_batch, tiny_policy, tiny_scorer

FAMILIES = ("llama", "gpt2")
JUNK = 17
"""What lies under the padding in the second version: never the pad token."""


def sequences(left: int, fill: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three prompts and responses, ragged, with `left` more columns of padding; `fill` lies under it."""
    prompts = prompt_batch([3, 6, 1], width=6 + left)
    prompts.ids[~prompts.mask] = fill
    ids = torch.randint(3, VOCAB, (3, 5), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(5) < torch.tensor([5, 2, 4])[:, None]
    return prompts.ids, prompts.mask, ids.masked_fill(~mask, fill), mask


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("read", [response_logits, token_values])
def test_left_padding_and_padding_contents_change_nothing_that_is_real(family: str, read) -> None:
    model = (tiny_policy if read is response_logits else tiny_scorer)(family=family).eval()
    plain, padded = sequences(0, 0), sequences(7, JUNK)
    mask = plain[3]
    a, b = read(model, *plain), read(model, *padded)
    assert a.shape[:2] == mask.shape
    assert a[mask].std() > 0.05  # else there would be nothing to see
    torch.testing.assert_close(a[mask], b[mask], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_output_layer_reads_states_in_one_piece(family: str) -> None:
    """On a slice of several rows, torch's product would copy the frozen weights (V × d) once a row."""
    model, seen = tiny_policy(family=family).eval(), []
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    response_logits(model, *sequences(0, 0))
    prompts, draws = prompt_batch([3, 6, 1]), torch.Generator().manual_seed(0)
    options = {"max_new_tokens": 3, "temperature": 1.0, "eos_id": 1, "pad_id": 0}
    sample(model, prompts, **options, generator=draws)
    assert [states.shape[1] for states in seen] == [5, 1, 1, 1]
    assert all(states.is_contiguous() for states in seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_score_depends_on_the_real_tokens_only(family: str) -> None:
    model = tiny_scorer(family=family).eval()
    rows = [torch.randint(3, VOCAB, (n,)) for n in (4, 9, 6)]
    alone = torch.cat([sequence_scores(model, r[None], torch.ones(1, len(r)).bool()) for r in rows])

    def batch(left: int, right: int) -> tuple[Tensor, Tensor]:
        ids, mask = torch.full((3, left + 9 + right), JUNK), torch.zeros(3, left + 9 + right).bool()
        for i, row in enumerate(rows):
            ids[i, left : left + len(row)], mask[i, left : left + len(row)] = row, True
        return ids, mask

    assert alone.std() > 0.05
    for left, right in ((0, 0), (0, 5), (4, 0), (3, 2)):
        torch.testing.assert_close(
            sequence_scores(model, *batch(left, right)), alone, atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_values_are_those_of_the_plain_forward_pass(family: str) -> None:
    """Response token t is predicted from, and valued before, position P − 1 + t."""
    policy, scorer = tiny_policy(family=family).eval(), tiny_scorer(family=family).eval()
    ids = torch.randint(3, VOCAB, (1, 9))
    mask = torch.ones_like(ids).bool()
    sequence = (ids[:, :4], mask[:, :4], ids[:, 4:], mask[:, 4:])
    torch.testing.assert_close(response_logits(policy, *sequence), policy(ids).logits[:, 3:8])
    backbone: nn.Module = getattr(scorer, scorer.base_model_prefix)
    values = scorer.score(backbone(ids).last_hidden_state)[..., 0]
    torch.testing.assert_close(token_values(scorer, *sequence), values[:, 3:8])
    torch.testing.assert_close(sequence_scores(scorer, ids, mask), values[:, -1])


# of torch's own, where it is imported
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_passes_with_a_cache_are_not_compiled_whoever_shows_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reference of LoRA is a view of the policy, whose passes were compiled at every length."""
    policy, stances = tiny_policy(0), []
    monkeypatch.setattr(torch.compiler, "set_stance", lambda s: stances.append(s) or nullcontext())
    shown = (policy, AdapterView(policy, None), TrunkScorer(policy, None))
    for model in shown:
        with uncompiled(model):
            assert not stances
    backbone(policy).compile()
    for number, model in enumerate(shown):
        with uncompiled(model):
            assert stances == ["force_eager"] * (number + 1)


def test_bias_and_gain_of_the_config_reach_values_and_scores() -> None:
    """(raw − 2) · 3, at every place where the head is read."""
    model = tiny_scorer().eval()
    ids = torch.randint(3, VOCAB, (2, 7))
    mask = torch.ones_like(ids).bool()
    sequence = (ids[:, :3], mask[:, :3], ids[:, 3:], mask[:, 3:])
    scores, values = sequence_scores(model, ids, mask), token_values(model, *sequence)
    model.config.reward_bias, model.config.reward_gain = 2.0, 3.0
    torch.testing.assert_close(sequence_scores(model, ids, mask), (scores - 2) * 3)
    torch.testing.assert_close(token_values(model, *sequence), (values - 2) * 3)
