"""The typed tensors that flow between data, models and stages.

One mask, one polarity: every `*_mask` is bool and True means a real token.
Dimension names: batch B, prompt tokens P, response tokens R, packed row length T, completions C, pairs M.

Index t of every (B, R) tensor is response token t: `logprobs[t]` is its log-probability, `values[t]` is V
before it is emitted, `rewards[t]` arrives after it. The score lands on the last real token (EOS included)
and V after that token is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class TensorBatch:
    """What every batch can do: move to a device, take rows."""

    def to(self, device: torch.device | str, **kwargs: Any) -> Self:
        """The same batch with every tensor on `device`."""
        moved = {
            f.name: _on_device(getattr(self, f.name), device, kwargs)
            for f in fields(self)  # type: ignore[arg-type]
        }
        return replace(self, **moved)  # type: ignore[type-var]

    def rows(self, index: Tensor | slice) -> Self:
        """The rows `index` of every field that has a row for each batch element."""
        taken: dict[str, Any] = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                taken[f.name] = value[index]
            elif isinstance(value, list):
                taken[f.name] = _list_rows(cast("list[Any]", value), index)
        return replace(self, **taken)  # type: ignore[type-var]


def _on_device(value: Any, device: torch.device | str, kwargs: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_on_device(item, device, kwargs) for item in cast("list[Any]", value)]
    return value.to(device, **kwargs) if isinstance(value, Tensor | TensorBatch) else value


def _list_rows(items: list[Any], index: Tensor | slice) -> list[Any]:
    return items[index] if isinstance(index, slice) else [items[int(i)] for i in index]


@dataclass
class SFTBatch(TensorBatch):
    """Documents packed into rows; attention and positions never cross a document's border."""

    ids: Int[Tensor, "batch token"]
    loss_mask: Bool[Tensor, "batch token"]
    """True where the token itself is a target (an assistant token or its EOS; in raw text all but BOS)."""
    positions: Int[Tensor, "batch token"]
    """Place of the token in its own document, from 0."""
    documents: Int[Tensor, "batch token"]
    """1, 2, ... for the row's documents; 0 is padding."""

    @property
    def mask(self) -> Bool[Tensor, "batch token"]:
        return self.documents > 0

    def micro_batches(self, rows: int) -> Iterator[Self]:
        """The batch in pieces of at most `rows` rows."""
        for start in range(0, len(self.ids), rows):
            yield self.rows(slice(start, start + rows))


@dataclass
class PromptBatch(TensorBatch):
    """Prompts, left-padded, ending where the assistant begins to speak."""

    ids: Int[Tensor, "batch prompt"]
    mask: Bool[Tensor, "batch prompt"]
    records: list[dict[str, Any]]
    """The source record of each row (its messages, and what the source tells about it)."""

    def repeated(self, times: int) -> Self:
        """Each prompt `times` times in a row."""
        return self.rows(torch.arange(len(self.ids)).repeat_interleave(times))

    def trimmed(self) -> Self:
        """The same prompts without columns that are padding in every row."""
        start = int(self.mask.any(0).long().argmax())
        return replace(self, ids=self.ids[:, start:], mask=self.mask[:, start:])


@dataclass
class PPOBatch(TensorBatch):
    """What one PPO iteration consumes."""

    prompts: PromptBatch
    pretraining: list[SFTBatch] = field(default_factory=list)
    """PPO-ptx: the text of each minibatch, the same in every epoch. Empty where it is off."""


@dataclass
class ComparisonBatch(TensorBatch):
    """All completions of some prompts, right-padded, and all their ordered pairs."""

    ids: Int[Tensor, "completion token"]
    mask: Bool[Tensor, "completion token"]
    group: Int[Tensor, " completion"]
    """The prompt (0, 1, ... in this batch) that each completion answers."""
    prompt_tokens: Int[Tensor, " completion"]
    """Tokens of the row that are its prompt's."""
    pairs: Int[Tensor, "pair 2"]
    """Rows (winner, loser) of every pair that is not a tie."""
    weights: Float[Tensor, " pair"]
    """1 / number of pairs of the same prompt."""
    margins: Float[Tensor, " pair"]
    """Rank distance of each pair, for the margin option."""
    prompts: int
    """Prompts that have at least one pair."""
    records: list[dict[str, Any]]
    """The comparison record of each prompt."""

    def micro_batches(self, prompts: int) -> Iterator[Self]:
        """The batch in pieces of at most `prompts` prompts; the completions of a prompt stay together."""
        for start in range(0, len(self.records), prompts):
            yield self._prompts(start, min(start + prompts, len(self.records)))

    def _prompts(self, start: int, stop: int) -> Self:
        rows = ((self.group >= start) & (self.group < stop)).nonzero()[:, 0]  # (C',) ascending
        pairs = ((self.pairs[:, :1] >= rows[0]) & (self.pairs[:, :1] <= rows[-1]))[:, 0]
        group = self.group[self.pairs[pairs, 0]]
        width = int(self.mask[rows].sum(1).max())
        return replace(
            self,
            ids=self.ids[rows, :width],
            mask=self.mask[rows, :width],
            group=self.group[rows] - start,
            prompt_tokens=self.prompt_tokens[rows],
            pairs=self.pairs[pairs] - rows[0],
            weights=self.weights[pairs],
            margins=self.margins[pairs],
            prompts=int(group.bincount().count_nonzero()),
            records=self.records[start:stop],
        )


@dataclass
class Rollout(TensorBatch):
    """Sampled responses with what was known while sampling. No gradient anywhere."""

    prompt_ids: Int[Tensor, "batch prompt"]
    prompt_mask: Bool[Tensor, "batch prompt"]
    response_ids: Int[Tensor, "batch response"]
    response_mask: Bool[Tensor, "batch response"]
    logprobs: Float[Tensor, "batch response"]
    ref_logprobs: Float[Tensor, "batch response"]
    values: Float[Tensor, "batch response"]
    scores: Float[Tensor, " batch"]
    """The reward model's score of the whole response, before any EOS rule, clip or normalisation."""
    ended: Bool[Tensor, " batch"]
    """True where the response ends with EOS."""


@dataclass
class Experience(TensorBatch):
    """A rollout turned into what the update needs."""

    prompt_ids: Int[Tensor, "batch prompt"]
    prompt_mask: Bool[Tensor, "batch prompt"]
    response_ids: Int[Tensor, "batch response"]
    response_mask: Bool[Tensor, "batch response"]
    logprobs: Float[Tensor, "batch response"]
    values: Float[Tensor, "batch response"]
    advantages: Float[Tensor, "batch response"]
    returns: Float[Tensor, "batch response"]
