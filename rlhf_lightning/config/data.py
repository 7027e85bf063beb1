"""`task=data`: a page about what a mix holds."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_lightning.config.checks import require


@dataclass
class DataConfig:
    """How much of a mix is read and shown."""

    records: int = 2000
    """Records that are read of an endless source, for each kind and split; a finite one is read to its end.
    Habit: enough for shares to the per cent."""
    rows: int = 20
    """Training rows that are shown as the model sees them, shared among the kinds of records; drawn by `seed`.
    Habit: a page."""

    def __post_init__(self) -> None:
        require(self.records >= 1, "data.records", ">= 1", self.records)
        require(self.rows >= 0, "data.rows", ">= 0", self.rows)
