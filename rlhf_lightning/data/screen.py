"""Sources that make their own splits: what they train on must not be held out elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from rlhf_lightning.data.index import HOLDING, HeldOut, for_prompts_alone, together
from rlhf_lightning.data.records import Record, key_hash, split_key
from rlhf_lightning.errors import UserError

SCREENED = ("demonstration", "comparison", "prompt")
"""Kinds that have prompts."""
_NEXT = 2**31
"""How far away an endless source's other record lies; a seed has twice as many."""

Read = Callable[[str, str, int], Record]
"""(kind, split, index) → a checked record."""
Size = Callable[[str, str], int | None]


def held_out_by(kinds: frozenset[str], size: Size, read: Read) -> HeldOut:
    """Key hashes of the validation and test prompts of all kinds that have an end."""
    return together(
        {split: _keys(kind, split, size(kind, split) or 0, read) for split in HOLDING}
        for kind in SCREENED
        if kind in kinds
    )


class Screen:
    """Which of a source's training records may be used.

    A finite source is looked through at once. An endless one is watched: a record that may not be used is replaced by
    another one of its own, always the same.
    """

    def __init__(
        self,
        kinds: frozenset[str],
        size: Size,
        read: Read,
        *,
        banned: np.ndarray,
        held_out_prompts: float,
        key: str,
    ) -> None:
        self._size, self._read, self._banned = size, read, banned
        self.removed: Counter[str] = Counter()
        self._kept: dict[str, np.ndarray] = {}
        self._passed_over: set[tuple[str, int]] = set()
        """Kind and index of an endless source's records that another one holds out."""
        for kind in (k for k in SCREENED if k in kinds):
            count = size(kind, "train")
            if count is None and held_out_prompts > 0:
                raise UserError(
                    f"mix.held_out_prompts must be 0 where a source is endless ({key}), got {held_out_prompts}"
                )
            if count is not None and (len(banned) or held_out_prompts > 0):
                self._look_through(kind, count, held_out_prompts)

    def size(self, kind: str, split: str) -> int | None:
        """Records that may be used."""
        if split == "train" and kind in self._kept:
            return len(self._kept[kind])
        return self._size(kind, split)

    def record(self, kind: str, split: str, index: int) -> Record:
        """The usable record at `index`."""
        if split != "train" or kind not in SCREENED or not len(self._banned):
            return self._read(kind, split, self._place(kind, split, index))
        record = self._read(kind, split, self._place(kind, split, index))
        while kind not in self._kept and _is_in(self._banned, key_hash(split_key(record))):
            if (kind, index) not in self._passed_over:  # read again: counted once
                self._passed_over.add((kind, index))
                self.removed["in_another_split"] += 1
            index += _NEXT
            record = self._read(kind, split, index)
        return record

    def _place(self, kind: str, split: str, index: int) -> int:
        return int(self._kept[kind][index]) if split == "train" and kind in self._kept else index

    def _look_through(self, kind: str, count: int, held_out_prompts: float) -> None:
        keys = _keys(kind, "train", count, self._read)
        taken = np.isin(keys, self._banned)
        self.removed["in_another_split"] += int(taken.sum())
        if held_out_prompts > 0:
            alone = for_prompts_alone(keys, held_out_prompts)
            other = (~alone if kind == "prompt" else alone) & ~taken
            self.removed["held_out_prompt"] += int(other.sum())
            taken |= other
        self._kept[kind] = np.flatnonzero(~taken).astype(np.uint32)


def _keys(kind: str, split: str, count: int, read: Read) -> np.ndarray:
    hashes = (key_hash(split_key(read(kind, split, index))) for index in range(count))
    return np.fromiter(hashes, np.uint64, count)


def _is_in(sorted_keys: np.ndarray, key: int) -> bool:
    place = int(np.searchsorted(sorted_keys, np.uint64(key)))
    return place < len(sorted_keys) and int(sorted_keys[place]) == key
