"""Parallel coordinates: each trial a line through its parameters to its objectives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlhf_lightning.evaluation.style import INK, MUTED, axes, new_figure
from rlhf_lightning.evaluation.sweep_report import SweepReport, TrialRow, parameter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_SET = -0.14
"""Height of what a trial does not have, below every axis."""


class Scale:
    """Values of one axis → height from 0 to 1."""

    def __init__(self, values: Sequence[Any], *, log: bool = False) -> None:
        self.log = log and all(_is_number(v) and v > 0 for v in values)
        self.numeric = all(_is_number(v) for v in values)
        self.choices = [] if self.numeric else list(dict.fromkeys(parameter(v) for v in values))
        numbers = [self._number(v) for v in values] if self.numeric else []
        self.low, self.high = (min(numbers), max(numbers)) if numbers else (0.0, 0.0)

    def height(self, value: Any) -> float:
        """Where a value lies; the middle, where all are the same."""
        if not self.numeric:
            last = len(self.choices) - 1
            return self.choices.index(parameter(value)) / last if last else 0.5
        if self.high == self.low:
            return 0.5
        return (self._number(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """(height, text)."""
        if not self.numeric:
            return [(self.height(choice), choice) for choice in self.choices]
        if self.high == self.low:
            return [(0.5, parameter(self._value(self.low)))]
        middle = (self.low + self.high) / 2
        return [
            (height, parameter(self._value(at)))
            for height, at in ((0.0, self.low), (0.5, middle), (1.0, self.high))
        ]

    def _number(self, value: Any) -> float:
        return math.log(value) if self.log else float(value)

    def _value(self, number: float) -> float:
        return math.exp(number) if self.log else number


def parallel_coordinates(report: SweepReport) -> Figure | None:
    """None while no trial has parameters."""
    trials = [trial for trial in report.trials if trial.params]
    if not trials:
        return None
    keys = report.params
    scales = {
        key: Scale([t.params[key] for t in trials if key in t.params], log=key in report.log_params)
        for key in keys
    }
    for place, name in enumerate(report.objectives):
        values = [t.values[place] for t in report.complete if t.values]
        if values:
            scales[name] = Scale(values)
    figure = new_figure(9.6, 4.2)
    ax = axes(figure, 1, 1, 1)
    ranks = goodness(report)
    # the best last, on top
    for trial in sorted(trials, key=lambda t: ranks.get(t.number, -1.0)):
        heights = _heights(trial, keys, scales)
        if trial.values is not None:
            found = zip(report.objectives, trial.values, strict=True)
            heights += [scales[name].height(value) for name, value in found]
        known = trial.number in ranks
        colour: Any = _colour(ranks[trial.number]) if known else MUTED
        style: Any = {"linestyle": "-" if known else (0, (4, 3)), "alpha": 0.85 if known else 0.5}
        width = 2.2 if trial.best else 1.1
        ax.plot(range(len(heights)), heights, color=colour, linewidth=width, **style)
    _draw_axes(ax, scales, {key for key in keys if any(key not in t.params for t in trials)})
    return figure


def goodness(report: SweepReport) -> dict[int, float]:
    """Complete trial → 0 (the worst by the first objective) ... 1 (the best)."""
    sign = 1.0 if report.directions[0] == "maximize" else -1.0
    ordered = sorted(report.complete, key=lambda t: sign * t.values[0] if t.values else 0.0)
    last = max(len(ordered) - 1, 1)
    return {trial.number: place / last for place, trial in enumerate(ordered)}


def _heights(trial: TrialRow, keys: list[str], scales: dict[str, Scale]) -> list[float]:
    return [
        scales[key].height(trial.params[key]) if key in trial.params else NOT_SET for key in keys
    ]


def _colour(rank: float) -> Any:
    from matplotlib import colormaps

    # its two ends vanish on a white or a black page
    return colormaps["viridis"](0.1 + 0.8 * rank)


def _draw_axes(ax: Any, scales: dict[str, Scale], gaps: set[str]) -> None:
    for x, (name, scale) in enumerate(scales.items()):
        ax.plot([x, x], [0, 1], color=MUTED, linewidth=1)
        for height, text in scale.ticks():
            ax.text(x + 0.03, height, text, fontsize=8, color=INK, va="center", parse_math=False)
        if name in gaps:
            ax.text(x + 0.03, NOT_SET, "not set", fontsize=8, color=MUTED, va="center")
    names = [name.replace(".", "\n.").replace("/", "\n/") for name in scales]
    ax.set_xticks(range(len(scales)), names, color=INK, fontsize=9)
    ax.set_yticks([])
    ax.set_xlim(-0.1, len(scales) - 0.6)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
