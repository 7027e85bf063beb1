"""A page about the records of a mix, for someone who did not make it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlhf_lightning.evaluation.data_report_statistics import ComparisonCounts, Lengths, edges_for
from rlhf_lightning.evaluation.page import inline, render_page
from rlhf_lightning.evaluation.report import count, number, percent
from rlhf_lightning.evaluation.style import (
    COLOURS,
    INK,
    MUTED,
    axes,
    new_figure,
)
from rlhf_lightning.foreign import without_controls

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_SOURCES = len(COLOURS)
"""Sources that a figure draws; the tables have all."""


@dataclass
class Part:
    """The records of one source, kind and split."""

    source: str
    kind: str
    split: str
    read: int
    size: int | None
    """None: endless, of which `read` were read."""
    mix_share: float | None
    """Share of the mix's records of that kind and split that come from here: in training by weight (until a source was
    given max_repeats times), held out by size."""
    lengths: dict[str, Lengths]
    """prompt, reply, completion, whole, text → tokens."""
    limits: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Quantity → (setting, tokens): longer records are left out in training, or cut where the mix says so."""
    duplicates: int = 0
    """Records whose text is that of an earlier one."""
    near_duplicates: int = 0
    """The same but for case and white space; these include the exact ones."""
    prompts_in_train: int | None = None
    """Records of a held-out split whose prompt is in the training split of that kind too, whatever the source (but for
    case and white space)."""
    comparisons: ComparisonCounts | None = None

    def too_long(self) -> dict[str, int]:
        """Setting → records (of comparisons: completions) that are longer than it allows."""
        return {key: self.lengths[name].over(limit) for name, (key, limit) in self.limits.items()}

    def summary(self) -> dict[str, Any]:
        """The part as JSON."""
        return {
            "source": self.source,
            "kind": self.kind,
            "split": self.split,
            "read": self.read,
            "size": self.size,
            "mix_share": self.mix_share,
            "tokens": {name: lengths.summary() for name, lengths in self.lengths.items()},
            "too_long": self.too_long(),
            "duplicates": self.duplicates,
            "near_duplicates": self.near_duplicates,
            "prompts_in_train": self.prompts_in_train,
            **({"comparisons": self.comparisons.summary()} if self.comparisons else {}),
        }


@dataclass
class Piece:
    """A visible bit of a row: a token, or the few that make one character together."""

    text: str
    ids: list[int]
    special: bool
    target: bool
    """A token that training predicts (of a comparison: that the reward model judges)."""


@dataclass
class ShownText:
    """One sequence of tokens of a row."""

    label: str
    """Empty, or what it is: `completion, rank 0`."""
    pieces: list[Piece]
    tokens: int
    hidden: int = 0
    """Tokens at the end that are not shown."""


@dataclass
class ShownRow:
    """One training row as the model sees it."""

    kind: str
    source: str
    index: int
    """Its place in the mix's training split."""
    texts: list[ShownText]
    note: str = ""


@dataclass
class DataReport:
    """All that the page shows."""

    title: str
    parts: Sequence[Part]
    over_long: str = "drop"
    """`mix.over_long`: what becomes of longer records in training."""
    removed: Sequence[tuple[str, Any]] = ()
    """What the mix left out, and how many."""
    rows: Sequence[ShownRow] = ()
    labeler_agreement: float | None = None
    """As the sources' simulated labelers measure it."""
    provenance: Mapping[str, str] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """data.json: the numbers without the rows."""
        return {
            "title": self.title,
            "parts": [part.summary() for part in self.parts],
            "removed": dict(self.removed),
            "labeler_agreement": self.labeler_agreement,
            "provenance": dict(self.provenance),
        }


def render(report: DataReport) -> str:
    """The page as text, which needs no other file and no network; what comes from data is escaped."""
    figures = [(kind, inline(figure)) for kind, figure in length_figures(report.parts).items()]
    return render_page(
        "data_report.html",
        (number, percent, count, visible),
        report=report,
        comparing=[part for part in report.parts if part.comparisons],
        sampled=[part for part in report.parts if part.size is None],
        figures=figures,
        limits=sorted({limit for part in report.parts for limit in part.limits.values()}),
        shown_sources=SHOWN_SOURCES,
    )


def visible(text: str) -> str:
    """Line breaks and tabs with a sign before them, other control characters as their picture."""
    return without_controls(text).replace("\n", "↵\n").replace("\t", "→\t")


def length_figures(parts: Sequence[Part]) -> dict[str, Figure]:
    """Kind → histograms of its lengths, all splits together, a line for each of the largest sources."""
    return {kind: _figure([p for p in parts if p.kind == kind]) for kind in _kinds(parts)}


def _kinds(parts: Sequence[Part]) -> list[str]:
    return list(dict.fromkeys(p.kind for p in parts if any(x.count for x in p.lengths.values())))


def _figure(parts: Sequence[Part]) -> Figure:
    names = list(parts[0].lengths)
    figure = new_figure(9.6, 2.9)
    figure.get_layout_engine().set(w_pad=0.1)  # type: ignore[union-attr]
    for place, name in enumerate(names):
        ax = axes(figure, 1, len(names), place + 1)
        drawn = _by_source(parts, name)
        edges = edges_for(max(max(lengths.counts, default=0) for lengths in drawn.values()))
        for colour, (source, lengths) in zip(COLOURS, drawn.items(), strict=False):
            shares = [100 * n / max(lengths.count, 1) for n in lengths.histogram(edges)]
            ax.stairs(shares, edges, color=colour, fill=len(drawn) == 1, alpha=0.85, label=source)
        limit = parts[0].limits.get(name)
        if limit is not None and limit[1] <= edges[-1]:
            ax.axvline(limit[1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        ax.set_title(f"{name}, % of all", loc="left", fontsize=10, color=INK)
        ax.set_xlabel("tokens")
        if len(drawn) > 1 and place == 0:
            ax.legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure


def _by_source(parts: Sequence[Part], name: str) -> dict[str, Lengths]:
    """The lengths of the largest sources, the largest first."""
    found: dict[str, Lengths] = {}
    for part in parts:
        found[part.source] = found.get(part.source, Lengths()) + part.lengths[name]
    largest = sorted(found, key=lambda source: (-found[source].count, source))[:SHOWN_SOURCES]
    return {source: found[source] for source in largest}


def finite(value: float | None) -> float | None:
    """None for what JSON has no number for."""
    return value if value is not None and math.isfinite(value) else None
