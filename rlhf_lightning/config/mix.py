"""Which records a run reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlhf_lightning.config.checks import MISSING, require


@dataclass
class SourceConfig:
    """One origin of records: a file or folder (`path`), or any importable class that is a `Source` (`target`)."""

    target: str | None = None
    """Import path of a class; called with `args`. See rlhf_lightning.data.mixture.Source."""
    path: str | None = None
    """Local file: .jsonl, .json, .csv, .parquet, each also .gz where it makes sense."""
    args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of `target`."""
    limit: int | None = None
    """Use at most this many records of each kind and split."""


@dataclass
class MixConfig:
    """Which corpora, with which weights."""

    name: str = MISSING
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """By name; a dict so that `mix.sources.mine.path=...` works from the command line."""
    weights: dict[str, float] = field(default_factory=dict)
    """Relative share of each source; a source that is absent here has weight 1."""
    validation_fraction: float = 0.05
    """Share of prompts (by hash of the prompt) held out for validation in sources without splits of their own."""
    test_fraction: float = 0.05
    """Share of prompts held out for the test split, likewise."""

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            require(weight >= 0, f"mix.weights.{name}", ">= 0", weight)
            require(
                name in self.sources, f"mix.weights.{name}", f"one of {sorted(self.sources)}", name
            )
        for key in ("validation_fraction", "test_fraction"):
            require(0 <= getattr(self, key) < 0.5, f"mix.{key}", "in [0, 0.5)", getattr(self, key))
