"""Which records a source has, in flat arrays: made once, 20 bytes a record."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from rlhf_lightning.data.records import SPLITS

HOLDING = ("validation", "test")
"""Splits that hold prompts out."""

Address = tuple[int, int, int, int]
"""File, where its row begins, the row's length, and which of the row's records."""
HeldOut = Mapping[str, np.ndarray]
"""validation, test → key hashes of the prompts that are held out for it."""


@dataclass(frozen=True)
class Rules:
    """What decides which of the records a split gets."""

    validation_fraction: float = 0.05
    test_fraction: float = 0.05
    held_out_prompts: float = 0.0
    """Share of training prompts that are for the kind prompt alone, and its only ones."""
    held_out: HeldOut = field(default_factory=dict)
    """What other sources hold out: a prompt in it may stand here in that same split only."""
    split: str | None = None
    """The split of all records; null: by key hash."""
    limit: int | None = None
    """Records of each kind and split at most: the first."""
    keep_repeats: bool = False
    """Comparisons that stand several times stay: they are several labels."""


class Places:
    """Addresses of the records of one kind and split."""

    def __init__(
        self, files: np.ndarray, starts: np.ndarray, lengths: np.ndarray, subs: np.ndarray
    ):
        self._columns = (files, starts, lengths, subs)

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, index: int) -> Address:
        file, start, length, sub = (int(column[index]) for column in self._columns)
        return file, start, length, sub

    def __add__(self, other: Places) -> Places:
        pairs = zip(self._columns, other._columns, strict=True)
        return Places(*(np.concatenate(pair) for pair in pairs))

    def first(self, count: int | None) -> Places:
        """At most the first `count`."""
        return Places(*(column[:count] for column in self._columns))


@dataclass
class Found:
    """Records of one kind as the scan finds them."""

    files: array[int] = field(default_factory=lambda: array("I"))
    starts: array[int] = field(default_factory=lambda: array("Q"))
    lengths: array[int] = field(default_factory=lambda: array("I"))
    subs: array[int] = field(default_factory=lambda: array("I"))
    keys: array[int] = field(default_factory=lambda: array("Q"))
    """Hash of what decides the split."""
    contents: array[int] = field(default_factory=lambda: array("Q"))
    """Hash of what makes two records the same."""

    def add(self, address: Address, key: int, content: int) -> None:
        columns = (self.files, self.starts, self.lengths, self.subs)
        for column, value in zip(columns, address, strict=True):
            column.append(value)
        self.keys.append(key)
        self.contents.append(content)

    def places(self, kept: np.ndarray) -> Places:
        columns = (self.files, self.starts, self.lengths, self.subs)
        return Places(*(np.asarray(column)[kept] for column in columns))


def together(parts: Iterable[HeldOut]) -> HeldOut:
    """What several kinds or sources hold out."""
    parts = list(parts)
    none = np.empty(0, np.uint64)
    return {
        name: np.unique(np.concatenate([none, *(part[name] for part in parts)])) for name in HOLDING
    }


def settle(
    kind: str, found: Found, rules: Rules, *, but: np.ndarray | None = None
) -> tuple[dict[str, Places], Counter[str], HeldOut]:
    """Each split's places, what was removed and why, and what is held out.

    Contents in `but` are passed over, and repeats are not counted then.
    """
    removed: Counter[str] = Counter()
    keys, contents = np.asarray(found.keys), np.asarray(found.contents)
    if kind == "comparison" and rules.keep_repeats:
        kept = np.arange(len(contents))
    else:
        kept = np.sort(np.unique(contents, return_index=True)[1])
    if but is None:
        removed["duplicate"] = len(keys) - len(kept)
    elif len(but):
        kept = kept[~np.isin(contents[kept], but)]
    keys = keys[kept]
    splits = splits_of(keys, rules)
    for reason, gone in _unwanted(kind, keys, splits, rules).items():
        removed[reason] = int((gone & (splits >= 0)).sum())
        splits[gone] = -1
    chosen = {name: kept[splits == i][: rules.limit] for i, name in enumerate(SPLITS)}
    places = {name: found.places(rows) for name, rows in chosen.items()}
    # what is over the limit of a given split is free for others; by hash it is held out everywhere
    rows = {
        name: kept[splits == SPLITS.index(name)] if rules.split is None else chosen[name]
        for name in HOLDING
    }
    keys = np.asarray(found.keys)
    return places, +removed, {name: np.unique(keys[own]) for name, own in rows.items()}


def splits_of(keys: np.ndarray, rules: Rules) -> np.ndarray:
    """Index into SPLITS for each 64-bit key: that of `rules.split`, or, the key read as a number in [0, 1), of test,
    validation or train."""
    if rules.split is not None:
        return np.full(len(keys), SPLITS.index(rules.split), np.int8)
    uniform = keys.astype(np.float64)
    uniform /= 2.0**64
    splits = np.zeros(len(keys), np.int8)
    splits[uniform < rules.test_fraction + rules.validation_fraction] = 1
    splits[uniform < rules.test_fraction] = 2
    return splits


def for_prompts_alone(keys: np.ndarray, fraction: float) -> np.ndarray:
    """Which training prompts only the kind prompt sees: the key's lower half, which no split looks at."""
    return (keys & np.uint64(0xFFFFFFFF)) < np.uint64(round(fraction * 2**32))


def _unwanted(
    kind: str, keys: np.ndarray, splits: np.ndarray, rules: Rules
) -> dict[str, np.ndarray]:
    """Reason → which records are left out of their split."""
    unwanted: dict[str, np.ndarray] = {}
    if kind == "text":  # raw text is no prompt
        return unwanted
    if any(map(len, rules.held_out.values())):
        unwanted["in_another_split"] = np.zeros(len(keys), bool)
        for name, held_out in rules.held_out.items():
            elsewhere = np.isin(keys, held_out) & (splits != SPLITS.index(name))
            unwanted["in_another_split"] |= elsewhere
    if rules.held_out_prompts > 0:
        alone = for_prompts_alone(keys, rules.held_out_prompts)
        other = ~alone if kind == "prompt" else alone
        unwanted["held_out_prompt"] = other & (splits == 0)
    return unwanted
