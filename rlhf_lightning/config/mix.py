"""Which records a run reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlhf_lightning.config.checks import MISSING, require

KINDS = ("demonstration", "comparison", "prompt", "text")
SPLITS = ("train", "validation", "test")
OVER_LONG = ("drop", "cut")


@dataclass
class SourceConfig:
    """One origin of records: a file or folder (`path`), a dataset (`hub`), or an importable `Source` (`target`)."""

    target: str | None = None
    """Import path of a class; called with `args`. See rlhf_lightning.data.source.Source."""
    path: str | None = None
    """File or folder: .jsonl, .json, .csv, .parquet, .txt, each also .gz. Relative to `mix.root`."""
    hub: str | None = None
    """Dataset of the Hugging Face hub (`organisation/name`), or a folder that `datasets` can load."""
    hub_config: str | None = None
    """Configuration of the dataset, where it has several."""
    hub_split: str = "train"
    """Split of the dataset that is read, also as `train[:10%]`. What it is for says `split`: without it a dataset's
    test split too is split by prompt, and trained on."""
    hub_revision: str | None = None
    """Branch, tag or commit of the dataset; null: the newest."""
    format: str | None = None
    """Name of the rows' format (docs/data.md has the list); null: the one that a file's first row shows."""
    split: str | None = None
    """Split that all records of the file or dataset are for (train, validation, test), where somebody has split them
    before; null: each record's is a hash of its prompt, with the mix's fractions."""
    args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of `target`, or options of the format."""
    kinds: dict[str, bool] = field(default_factory=dict)
    """Kind of record (demonstration, comparison, prompt, text) → use it; one that is absent is used."""
    limit: int | None = None
    """Use at most this many records of each kind and split: the first ones."""
    max_repeats: float | None = None
    """Passes over this source's training records, after which its share goes to the others; null: no end."""
    dialogue_turns: int = 1
    """Demonstrations of one question and one answer that are strung into one conversation. Files and hub only."""
    keep_repeats: bool = False
    """A comparison that stands several times is so many labels (of several labelers, without a word of who). false:
    it is there once, and what it was more often is counted (`duplicate`). Files and hub only."""


@dataclass
class MixConfig:
    """Which corpora, with which weights."""

    name: str = MISSING
    """Short name, used in run names; each preset has its own."""
    root: str | None = None
    """Folder that relative paths of sources start from; null: the working directory."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """By name; a dict so that `mix.sources.mine.path=...` works from the command line."""
    weights: dict[str, float] = field(default_factory=dict)
    """Relative share of each source; a source that is absent here has weight 1."""
    validation_fraction: float = 0.05
    """Share of prompts (by hash of the prompt) held out for validation in sources that have no `split` and are no
    `target`. Habit."""
    test_fraction: float = 0.05
    """Share of prompts held out for the test split, likewise."""
    held_out_prompts: float = 0.0
    """Share of training prompts (by hash) that PPO alone sees: their demonstrations and comparisons are left out, and
    all other training prompts are no `prompt` records. 0: every prompt is everyone's."""
    over_long: str = "drop"
    """What becomes of records longer than a stage takes: drop, or cut at the end of a sentence."""

    def __post_init__(self) -> None:
        for name, source in self.sources.items():
            _check_source(f"mix.sources.{name}", source)
        for name, weight in self.weights.items():
            require(weight >= 0, f"mix.weights.{name}", ">= 0", weight)
            require(
                name in self.sources, f"mix.weights.{name}", f"one of {sorted(self.sources)}", name
            )
        for key in ("validation_fraction", "test_fraction"):
            require(0 <= getattr(self, key) < 0.5, f"mix.{key}", "in [0, 0.5)", getattr(self, key))
        held_out = self.held_out_prompts
        require(0 <= held_out < 1, "mix.held_out_prompts", "in [0, 1)", held_out)
        require(self.over_long in OVER_LONG, "mix.over_long", "drop or cut", self.over_long)


def _check_source(key: str, source: SourceConfig) -> None:
    for kind in source.kinds:
        require(kind in KINDS, f"{key}.kinds", f"settings of {', '.join(KINDS)}", kind)
    repeats, turns = source.max_repeats, source.dialogue_turns
    if repeats is not None:
        require(repeats > 0, f"{key}.max_repeats", "null or > 0", repeats)
    require(turns >= 1, f"{key}.dialogue_turns", ">= 1", turns)
    known = source.split is None or source.split in SPLITS
    require(known, f"{key}.split", "train, validation, test or null", source.split)
