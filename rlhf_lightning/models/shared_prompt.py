"""All completions of a prompt in one row, so that the prompt is computed once and not K times.

    row        prompt            completion 1     completion 2     ...
    position   0 .. P-1          P .. P+n₁-1      P .. P+n₂-1
    sees       earlier prompt    prompt + own     prompt + own

A token sees exactly what it would see in a row of its own, so scores and gradients are those of one pass a completion.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lightning.batches import ComparisonBatch
from rlhf_lightning.models.adapters import backbone
from rlhf_lightning.models.forward import attention_mask, head_scores, sequence_scores


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
