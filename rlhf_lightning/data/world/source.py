"""The built-in world as a source of records (`mix=demo`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.data.records import KINDS, SPLITS, Record
from rlhf_lightning.data.world.corpora import World
from rlhf_lightning.data.world.judge import Gold, answer_items, gold
from rlhf_lightning.data.world.labelers import HELD_OUT_LABELERS, LABELERS, TRAIN_LABELERS
from rlhf_lightning.data.world.parse import is_refusal
from rlhf_lightning.errors import UserError

_DEFAULT_LABELERS = {
    "train": TRAIN_LABELERS,
    "validation": TRAIN_LABELERS,
    "test": HELD_OUT_LABELERS,
}


class WorldSource:
    """Endless records of all four kinds, their truth, and labelers who rank completions.

    `seed` makes the world (its facts stay the same, what is held out changes); it is not the run's seed, so that runs
    with different seeds are examined in the same world. `labelers` says who labels which split:
    `{"test": ["flo"]}`.

    Raises: UserError for a split or labeler that does not exist.
    """

    kinds = KINDS

    def __init__(self, seed: int = 0, labelers: Mapping[str, Sequence[str]] | None = None) -> None:
        self.world = World(seed)
        self.labelers = {**_DEFAULT_LABELERS, **{k: tuple(v) for k, v in (labelers or {}).items()}}
        for split, names in self.labelers.items():
            if split not in SPLITS:
                raise UserError(
                    f"labelers must be given by split {', '.join(SPLITS)}, got {split!r}"
                )
            if not names or not set(names) <= set(LABELERS):
                raise UserError(
                    f"labelers.{split} must be some of {', '.join(LABELERS)}, got {list(names)}"
                )

    def size(self, kind: str, split: str) -> None:
        """Endless."""

    def record(self, kind: str, split: str, index: int) -> Record:
        if kind == "comparison":
            return self.world.comparison(split, index, self.labelers[split])
        return getattr(self.world, kind)(split, index)

    def gold(self, meta: Mapping[str, Any], response: str) -> Gold | None:
        """The gold score; None for records without a task (raw text)."""
        return gold(dict(meta), response) if meta else None

    def rank(
        self, record: Mapping[str, Any], completions: Sequence[str], *, split: str, index: int
    ) -> list[int]:
        """Ranks by the one of the split's labelers whose turn `index` is."""
        names = self.labelers[split]
        return self.world.rank(dict(record), completions, names[index % len(names)], index)

    def reworded(self, record: Mapping[str, Any]) -> Record | None:
        return self.world.reworded(dict(record)) if record.get("meta") else None

    def answer_items(self, meta: Mapping[str, Any], response: str) -> frozenset[tuple[str, ...]]:
        return answer_items(dict(meta), response)

    def is_refusal(self, meta: Mapping[str, Any], response: str) -> bool:
        return is_refusal(response)

    def should_refuse(self, meta: Mapping[str, Any]) -> bool:
        return bool(meta["decline"])

    def labeler_agreement(self) -> float:
        """Measured on the world's own speakers: the same number for every run of this world."""
        return self.world.agreement()

    def identity(self) -> dict[str, str]:
        """The generator is this world's data file: another version of it makes other records."""
        digest = hashlib.sha256()
        for path in sorted(Path(__file__).parent.glob("*.py")):
            digest.update(path.read_bytes())
        return {"generator": digest.hexdigest()[:12]}
