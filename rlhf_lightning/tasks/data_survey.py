"""Counting the records of one source, kind and split, batch by batch; of the texts only digests stay in memory, 24 to
32 bytes a record."""

from __future__ import annotations

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from rlhf_lightning.data.encode import (
    encode_completions,
    encode_demonstrations,
    encode_prompts,
    encode_texts,
)
from rlhf_lightning.data.records import Record, pairs_of, prompt_key, prompt_of
from rlhf_lightning.evaluation.data_report_statistics import (
    ComparisonCounts,
    Lengths,
    agreement,
    length_bias,
    tied_pairs,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_LIMIT = 2**62

QUANTITIES = {
    "demonstration": ("prompt", "reply", "whole"),
    "comparison": ("prompt", "completion", "whole"),
    "prompt": ("prompt",),
    "text": ("text",),
}
"""Kind → the lengths that are counted."""


@dataclass
class Survey:
    """The counts of one source, kind and split."""

    kind: str
    tokenizer: PreTrainedTokenizerBase
    lengths: dict[str, Lengths] = field(default_factory=dict)
    read: int = 0
    comparisons: ComparisonCounts | None = None
    prompts: array[int] = field(default_factory=lambda: array("Q"))
    """The digest of each record's prompt."""
    _exact: array[int] = field(default_factory=lambda: array("Q"))
    _near: array[int] = field(default_factory=lambda: array("Q"))
    _compared: array[int] = field(default_factory=lambda: array("Q"))

    def __post_init__(self) -> None:
        self.lengths = {name: Lengths() for name in QUANTITIES[self.kind]}
        self.comparisons = ComparisonCounts() if self.kind == "comparison" else None

    def add(self, records: Sequence[Record]) -> None:
        """Count a batch."""
        self.read += len(records)
        tokens = _lengths(self.kind, records, self.tokenizer)
        for name, found in tokens.items():
            self.lengths[name].add(found)
        for record in records:
            self._texts(record)
        if self.comparisons is not None:
            self._compare(records, tokens["completion"], self.comparisons)

    @property
    def duplicates(self) -> int:
        """Records whose texts an earlier one has."""
        return len(self._exact) - len(np.unique(self._exact))

    @property
    def near_duplicates(self) -> int:
        """Likewise, but for case and white space."""
        return len(self._near) - len(np.unique(self._near))

    def repeated(self) -> set[int]:
        """Digests of comparisons (prompt and completions) that have more than one record, so maybe several labels."""
        found, counts = np.unique(self._compared, return_counts=True)
        return set(found[counts > 1].tolist())

    def _texts(self, record: Record) -> None:
        texts = texts_of(self.kind, record)
        self._exact.append(digest(texts))
        self._near.append(digest([" ".join(t.casefold().split()) for t in texts]))
        self.prompts.append(digest([prompt_key(prompt_of(record))]))

    def _compare(
        self, records: Sequence[Record], completion_tokens: Sequence[int], counts: ComparisonCounts
    ) -> None:
        tokens = iter(completion_tokens)
        for record in records:
            lengths = [next(tokens) for _ in record["completions"]]
            pairs = pairs_of(record)[0]
            counts.completions[len(lengths)] += 1
            counts.decided += len(pairs)
            longer, shorter, equal = length_bias(pairs, lengths)
            counts.longer += longer
            counts.shorter += shorter
            counts.equal += equal
            if "ranks" in record:
                tied, ranked = tied_pairs(record["ranks"])
                counts.tied += tied
                counts.ranked_pairs += ranked
                counts.all_tied += not pairs
            self._compared.append(_comparison_key(record))

    def count_labels(self, records: Iterable[Record], repeated: set[int]) -> None:
        """A second pass, over the same records: agreement of the labels of comparisons that are `repeated`."""
        assert self.comparisons is not None
        votes: dict[tuple[int, int, int], list[int]] = defaultdict(lambda: [0, 0])
        for record in records:
            what = _comparison_key(record)
            if what not in repeated:
                continue
            for low, high, second_wins in _label(record):
                votes[what, low, high][second_wins] += 1
        alike, labels = agreement((first, second) for first, second in votes.values())
        self.comparisons.alike, self.comparisons.labels = alike, labels


def texts_of(kind: str, record: Record) -> list[str]:
    """All that a record says, without its labels."""
    if kind == "text":
        return [record["text"]]
    messages = record["messages" if kind == "demonstration" else "prompt"]
    said = [f"{message['role']}: {message['content']}" for message in messages]
    return said + list(record.get("completions", []))


def digest(texts: Sequence[str]) -> int:
    """Eight bytes for a list of texts."""
    found = hashlib.blake2b(digest_size=8)
    for text in texts:
        data = text.encode()
        found.update(len(data).to_bytes(8, "big") + data)
    return int.from_bytes(found.digest(), "big")


def _label(record: Record) -> set[tuple[int, int, bool]]:
    """The record's say about each two different texts: (digest, digest, is the second one the better?).

    A text that stands twice gives one say, not two; none where its copies were ranked to contradict each other.
    """
    places = [digest([text]) for text in record["completions"]]
    ordered = ((places[winner], places[loser]) for winner, loser in pairs_of(record)[0])
    said = {(min(a, b), max(a, b), a > b) for a, b in ordered if a != b}
    return {(a, b, second) for a, b, second in said if (a, b, not second) not in said}


def _comparison_key(record: Record) -> int:
    return digest([prompt_key(record["prompt"]), *sorted(record["completions"])])


def _lengths(
    kind: str, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[int]]:
    """Quantity → tokens of each record (of completions: of each completion)."""
    if kind == "text":
        rows = encode_texts(tokenizer, [record["text"] for record in records], NO_LIMIT)
        return {"text": [len(row.ids) for row in rows if row is not None]}
    prompts = [len(ids) for ids in encode_prompts(tokenizer, [prompt_of(r) for r in records])]
    if kind == "prompt":
        return {"prompt": prompts}
    if kind == "demonstration":
        conversations = [record["messages"] for record in records]
        rows = encode_demonstrations(tokenizer, conversations, NO_LIMIT)
        replies = encode_completions(tokenizer, [m[-1]["content"] for m in conversations])
        whole = [len(row.ids) for row in rows if row is not None]
        return {"prompt": prompts, "reply": [len(ids) for ids in replies], "whole": whole}
    texts = [text for record in records for text in record["completions"]]
    completions = [len(ids) for ids in encode_completions(tokenizer, texts)]
    owners = [n for n, record in zip(prompts, records, strict=True) for _ in record["completions"]]
    whole = [a + b for a, b in zip(owners, completions, strict=True)]
    return {"prompt": prompts, "completion": completions, "whole": whole}
