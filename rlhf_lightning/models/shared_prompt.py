"""A prompt is computed once for its K completions, and not K times.

With gradients, all completions of a prompt stand in one row:

    row        prompt            completion 1     completion 2     ...
    position   0 .. P-1          P .. P+n₁-1      P .. P+n₂-1
    sees       earlier prompt    prompt + own     prompt + own

A token sees exactly what it would see in a row of its own, so scores and gradients are those of one pass a completion.

Or the keys and values of each prompt are computed once and then read by all rows that begin with it
(`response_logits_by_cache`, `response_scores_by_cache`), by any model that can sample. The gradient of each row flows
back through them; layers that are computed again in the backward pass (gradient checkpointing) have no such cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lightning.batches import ComparisonBatch
from rlhf_lightning.models.adapters import TrunkScorer, backbone
from rlhf_lightning.models.forward import (
    attention_mask,
    columns,
    head_scores,
    inputs_for,
    run_trunk,
    sequence_scores,
    uncompiled,
)


def comparison_scores(model: nn.Module, batch: ComparisonBatch, *, share_prompt: bool) -> Tensor:
    """The reward model's score of each completion, (C,) fp32: a row each, or a row a prompt."""
    if share_prompt:
        return shared_prompt_scores(model, batch)
    return sequence_scores(model, batch.ids, batch.mask)


def shared_prompt_scores(model: nn.Module, batch: ComparisonBatch) -> Tensor:
    """The reward model's score of each completion, (C,) fp32, read at its last real token."""
    row, column, token, position, segment = _places(batch)
    shape = (int(batch.group.max()) + 1, int(column.max()) + 1)
    ids, positions = batch.ids.new_zeros(shape), batch.ids.new_zeros(shape)
    segments = batch.ids.new_full(shape, -1)  # padding
    ids[row, column], positions[row, column], segments[row, column] = token, position, segment
    keys, queries = segments[:, None, :], segments[:, :, None]
    causal = torch.ones(shape[1], shape[1], dtype=torch.bool, device=ids.device).tril()
    # padding sees the padding before it: a row without any key would be NaN
    allowed = ((keys == 0) | (keys == queries)) & causal
    trunk: Any = backbone(model)
    hidden = trunk(
        input_ids=ids,
        attention_mask=attention_mask(model, allowed),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state
    last = _offsets(batch) + batch.mask.sum(1) - batch.prompt_tokens - 1
    return head_scores(model, hidden[batch.group, last])


def _offsets(batch: ComparisonBatch) -> Tensor:
    """Column (C,) where each completion begins in its prompt's row."""
    lengths = batch.mask.sum(1) - batch.prompt_tokens
    before = lengths.cumsum(0) - lengths
    return batch.prompt_tokens + before - before[_first(batch)]


def _first(batch: ComparisonBatch) -> Tensor:
    """Index (C,) of the first completion of each one's prompt; the completions of a prompt stand together."""
    return torch.searchsorted(batch.group.contiguous(), batch.group.contiguous())


def _places(batch: ComparisonBatch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of every token that is computed: row, column, id, position, and 0 in the prompt or 1, 2, ... in a completion."""
    completion, place = batch.mask.nonzero(as_tuple=True)
    first, in_prompt = _first(batch)[completion], place < batch.prompt_tokens[completion]
    kept = ~in_prompt | (completion == first)
    completion, place, first, in_prompt = (
        completion[kept],
        place[kept],
        first[kept],
        in_prompt[kept],
    )
    column = _offsets(batch)[completion] + place - batch.prompt_tokens[completion]
    column = torch.where(in_prompt, place, column)
    segment = torch.where(in_prompt, 0, 1 + completion - first)
    return batch.group[completion], column, batch.ids[completion, place], place, segment


def distinct(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of left-padded prompts (B, P) that hold each of them once, in order, and each row's place among those."""
    real = ids.masked_fill(~mask, -1)
    _, group = torch.unique(real, dim=0, return_inverse=True)
    rows = torch.arange(len(group), device=group.device)
    earliest = torch.full_like(group, len(group)).scatter_reduce(0, group, rows, "amin")
    return earliest[group].unique(return_inverse=True)


def response_logits_by_cache(
    model: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    response_ids: Tensor,
    response_mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """`forward.response_logits` for rows of which several begin with the same prompt.

    In two parts, since joined they would be in memory twice: of the first token, (B, 1, V), and of the others,
    (B, R − 1, V).
    """
    width, others = prompt_ids.shape[1], response_ids.shape[1] - 1
    place, before, after = _run_by_cache(
        model,
        model,
        (prompt_ids, prompt_mask, response_ids, response_mask),
        of_prompt={"logits_to_keep": columns(width - 1, width, prompt_ids.device)},
        of_response={"logits_to_keep": columns(0, max(others, 1), prompt_ids.device)},
    )
    return before.logits[place], after.logits[:, :others]


@torch.no_grad()
def response_scores_by_cache(
    model: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    response_ids: Tensor,
    response_mask: Tensor,
) -> Tensor:
    """`forward.sequence_scores`, (B,) fp32, for rows of which several begin with the same prompt.

    No response may be empty.
    """
    _, _, after = _run_by_cache(
        lambda **inputs: run_trunk(model, **inputs),
        backbone(model.trunk if isinstance(model, TrunkScorer) else model),
        (prompt_ids, prompt_mask, response_ids, response_mask),
    )
    last = response_mask.sum(1) - 1
    rows = torch.arange(len(last), device=last.device)
    return head_scores(model, after.last_hidden_state[rows, last])


def _run_by_cache(
    run: Callable[..., Any],
    model: nn.Module,
    sequence: tuple[Tensor, Tensor, Tensor, Tensor],
    of_prompt: Mapping[str, Any] = MappingProxyType({}),
    of_response: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Tensor, Any, Any]:
    """Place of each row's prompt, the output of the distinct prompts, and that of all responses after them.

    Two passes, however many rows there are: processes that share a model's weights make as many.
    """
    prompt_ids, prompt_mask, response_ids, response_mask = sequence
    first, place = distinct(prompt_ids, prompt_mask)
    seen = inputs_for(model, prompt_ids[first], prompt_mask[first])
    with uncompiled(model):
        before = run(**seen, **of_prompt, use_cache=True)
    cache = before.past_key_values
    cache.batch_select_indices(place)
    inputs = inputs_for(model, response_ids, torch.cat([prompt_mask, response_mask], 1))
    if "position_ids" in inputs:
        inputs["position_ids"] = inputs["position_ids"][:, prompt_ids.shape[1] :]
    with uncompiled(model):
        after = run(**inputs, **of_response, past_key_values=cache, use_cache=True)
    return place, before, after
