"""Token ids → batches: packed, left-padded, or in comparison groups. `encode` makes the ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlhf_lightning.batches import ComparisonBatch, PromptBatch, SFTBatch
from rlhf_lightning.data.encode import (
    Encoded,
    Ids,
    encode_completion,
    encode_completions,
    encode_demonstration,
    encode_demonstrations,
    encode_prompt,
    encode_prompts,
    encode_text,
    encode_texts,
)
from rlhf_lightning.data.records import Record, pairs_of

__all__ = [
    "Encoded",
    "collate_comparisons",
    "collate_prompts",
    "encode_completion",
    "encode_completions",
    "encode_demonstration",
    "encode_demonstrations",
    "encode_prompt",
    "encode_prompts",
    "encode_text",
    "encode_texts",
    "pack",
]


def pack(documents: Sequence[Encoded], max_length: int, pad_id: int) -> SFTBatch:
    """Documents in as few rows of at most `max_length` tokens as first-fit finds, the longest first.

    The same documents give the same rows. Rows are as wide as the fullest one. No documents give one row of padding,
    so that a device without examples still takes part.
    """
    rows: list[list[Encoded]] = []
    used: list[int] = []
    for document in sorted(documents, key=lambda d: -len(d.ids)):  # stable: ties keep their order
        size = len(document.ids)
        if size > max_length:
            raise ValueError(f"documents must have at most {max_length} tokens, got {size}")
        row = next((i for i, n in enumerate(used) if n + size <= max_length), len(rows))
        if row == len(rows):
            rows.append([])
            used.append(0)
        rows[row].append(document)
        used[row] += size
    return _filled(rows, (max(len(rows), 1), max(used, default=1)), pad_id)


def collate_prompts(prompts: Sequence[Ids], records: Sequence[Record], pad_id: int) -> PromptBatch:
    """Prompts left-padded to the longest one."""
    ids, mask = _padded(prompts, pad_id, left=True)
    return PromptBatch(ids=ids, mask=mask, records=list(records))


def collate_comparisons(
    items: Sequence[tuple[Ids, Sequence[Ids], Record]], pad_id: int
) -> ComparisonBatch:
    """(prompt ids, ids of each completion, comparison record) of some prompts; pairs as `records.pairs_of` finds them.

    weights = 1 / number of pairs of the same prompt, so that every prompt counts alike whatever its K.
    """
    rows: list[Ids] = []
    group: list[int] = []
    prompt_tokens: list[int] = []
    pairs: list[tuple[int, int]] = []
    weights: list[float] = []
    margins: list[int] = []
    decided = 0
    for number, (prompt, completions, record) in enumerate(items):
        found, distances = pairs_of(record)
        pairs += [(len(rows) + winner, len(rows) + loser) for winner, loser in found]
        weights += [1 / len(found) for _ in found]
        margins += distances
        decided += bool(found)
        rows += [prompt + list(completion) for completion in completions]
        group += [number] * len(completions)
        prompt_tokens += [len(prompt)] * len(completions)
    ids, mask = _padded(rows, pad_id, left=False)
    return ComparisonBatch(
        ids=ids,
        mask=mask,
        group=torch.tensor(group, dtype=torch.long),
        prompt_tokens=torch.tensor(prompt_tokens, dtype=torch.long),
        pairs=torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
        weights=torch.tensor(weights, dtype=torch.float32),
        margins=torch.tensor(margins, dtype=torch.float32),
        prompts=decided,
        records=[record for _, _, record in items],
    )


def _filled(rows: Sequence[Sequence[Encoded]], shape: tuple[int, int], pad_id: int) -> SFTBatch:
    ids, loss_mask, positions, documents = [], [], [], []
    height, width = shape
    for row in [*rows, *[()] * (height - len(rows))]:
        spare = width - sum(len(document.ids) for document in row)
        ids.append([i for d in row for i in d.ids] + [pad_id] * spare)
        loss_mask.append([m for d in row for m in d.loss_mask] + [False] * spare)
        positions.append([p for d in row for p in range(len(d.ids))] + [0] * spare)
        documents.append([n for n, d in enumerate(row, start=1) for _ in d.ids] + [0] * spare)
    return SFTBatch(
        ids=torch.tensor(ids, dtype=torch.long),
        loss_mask=torch.tensor(loss_mask, dtype=torch.bool),
        positions=torch.tensor(positions, dtype=torch.long),
        documents=torch.tensor(documents, dtype=torch.long),
    )


def _padded(rows: Sequence[Ids], pad_id: int, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    width = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        here = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, here] = torch.tensor(row, dtype=torch.long)
        mask[i, here] = True
    return ids, mask
