"""The figures of a search's page, from plain rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rlhf_lightning.evaluation.style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    VERMILLION,
    axes,
    new_figure,
)
from rlhf_lightning.evaluation.sweep_parallel import parallel_coordinates
from rlhf_lightning.evaluation.sweep_report import Importance, SweepReport, TrialRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOUR_OF = {
    "COMPLETE": BLUE,
    "PRUNED": ORANGE,
    "FAIL": VERMILLION,
    "RUNNING": GREEN,
    "WAITING": MUTED,
}
NAMED_LINES = 12
"""Up to so many trials a panel of curves writes their numbers at the ends."""

Titled = tuple[str, "Figure | None", str]
"""Title, figure (None: there is nothing to draw yet), caption."""


def figures_of(report: SweepReport) -> Iterator[Titled]:
    """Every figure of the page in order."""
    none = "No trial is complete yet."
    history_text = (
        "Each trial's value by number; the line is the best so far among those that satisfy the"
        " constraints. Hollow: a constraint is broken. Marks at the bottom: pruned (orange), failed (red)."
    )
    yield "Optimisation history", history(report), history_text if report.complete else none
    if len(report.objectives) > 1:
        text = (
            "Red, with numbers: the front, trials that no other one beats in every objective. Hollow: a"
            " constraint is broken."
        )
        yield "Pareto front", front(report), text if report.complete else none
    text = (
        "One line a trial, through its parameters to its objectives; the brighter, the better by the first"
        " objective. Dashed: no value (pruned, failed, unfinished). “not set”: a parameter that this trial"
        " does not have."
    )
    drawn = parallel_coordinates(report)
    yield (
        "Parallel coordinates",
        drawn,
        text if drawn is not None else "No trial has parameters yet.",
    )
    notes = " ".join(
        dict.fromkeys(f"{i.objective}: {i.note}" for i in report.importances if i.note)
    )
    text = "Share of the difference between good and other trials that a parameter explains (PED-ANOVA)."
    yield "Hyperparameter importance", importance_bars(report.importances), f"{text} {notes}"
    text = (
        "Every trial that measured it, up to where it ended. Dark: the best. Steps are the stage's own:"
        " PPO iterations, optimizer steps elsewhere."
    )
    drawn = trial_curves(report)
    yield "Learning curves", drawn, text if drawn is not None else "No trial has measured any yet."


def history(report: SweepReport) -> Figure | None:
    """Value over trial number, a row for each objective."""
    if not report.complete:
        return None
    from matplotlib.ticker import MaxNLocator

    rows = len(report.objectives)
    figure = new_figure(9.6, 0.4 + 2.5 * rows)
    for place, (name, direction) in enumerate(
        zip(report.objectives, report.directions, strict=True)
    ):
        ax = axes(figure, rows, 1, place + 1)
        points = [(t.number, t.values[place], t.allowed) for t in report.complete if t.values]
        for allowed in (True, False):
            some = [(x, y) for x, y, ok in points if ok is allowed]
            face = BLUE if allowed else "none"
            ax.scatter(*_columns(some), s=26, facecolors=face, edgecolors=BLUE, zorder=3)
        steps = best_so_far([(x, y) for x, y, ok in points if ok], direction)
        if steps:
            last = max(t.number for t in report.trials)
            ax.step(*_columns([*steps, (last, steps[-1][1])]), where="post", color=INK, linewidth=1)
        for state in ("PRUNED", "FAIL"):
            numbers = [t.number for t in report.trials if t.state == state]
            ax.scatter(
                numbers,
                [0.02] * len(numbers),
                marker="x",
                s=22,
                color=COLOUR_OF[state],
                transform=ax.get_xaxis_transform(),
            )
        ax.set_title(f"{name} ({direction})", loc="left", fontsize=10, color=INK)
        ax.set_xlabel("trial")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def best_so_far(points: list[tuple[int, float]], direction: str) -> list[tuple[int, float]]:
    """(trial, best value of it and all before it), where it changes."""
    better = max if direction == "maximize" else min
    steps: list[tuple[int, float]] = []
    for trial, value in sorted(points):
        best = better(value, steps[-1][1]) if steps else value
        if not steps or best != steps[-1][1]:
            steps.append((trial, best))
    return steps


def front(report: SweepReport) -> Figure | None:
    """Each pair of objectives against each other; of two, the front is joined."""
    if not report.complete or len(report.objectives) < 2:
        return None
    pairs = list(itertools.combinations(range(len(report.objectives)), 2))
    columns = min(2, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    figure = new_figure(9.6, 3.6 * rows)
    for place, (a, b) in enumerate(pairs):
        ax = axes(figure, rows, columns, place + 1)
        for trial in report.complete:
            assert trial.values is not None
            x, y = trial.values[a], trial.values[b]
            colour = VERMILLION if trial.best else BLUE
            face = colour if trial.allowed else "none"
            ax.scatter([x], [y], s=30, facecolors=face, edgecolors=colour, zorder=3)
            if trial.best:
                offset: Any = {"xytext": (5, 4), "textcoords": "offset points"}
                ax.annotate(str(trial.number), (x, y), color=INK, fontsize=9, **offset)
        if len(report.objectives) == 2:
            joined = sorted((t.values[a], t.values[b]) for t in report.best if t.values)
            ax.plot(*_columns(joined), color=VERMILLION, linewidth=1, alpha=0.6)
        for axis, which in (("x", a), ("y", b)):
            label = f"{report.objectives[which]} ({report.directions[which]})"
            getattr(ax, f"set_{axis}label")(label, color=MUTED, fontsize=9)
    return figure


def importance_bars(importances: list[Importance]) -> Figure | None:
    """A bar for each parameter, a column for each objective that can be said something about."""
    known = [item for item in importances if item.shares]
    if not known:
        return None
    columns = min(2, len(known))
    rows = math.ceil(len(known) / columns)
    most = max(len(item.shares) for item in known)
    figure = new_figure(9.6, rows * (0.9 + 0.34 * most))
    for place, item in enumerate(known):
        ax = axes(figure, rows, columns, place + 1)
        ordered = sorted(item.shares.items(), key=lambda pair: pair[1])
        ax.barh([name for name, _ in ordered], [v for _, v in ordered], color=BLUE, height=0.6)
        for row, (_, value) in enumerate(ordered):
            ax.text(value + 0.02, row, f"{100 * value:.0f} %", va="center", color=INK, fontsize=9)
        ax.set_xlim(0, 1.15)
        ax.set_xticks([])
        ax.grid(visible=False)
        ax.tick_params(axis="y", labelcolor=INK, length=0)
        ax.spines["bottom"].set_visible(False)
        ax.set_title(item.objective, loc="left", fontsize=10, color=INK)
    return figure


def trial_curves(report: SweepReport) -> Figure | None:
    """A panel for each metric, a line for each trial that measured it."""
    panels = {
        metric: found
        for metric in report.shown_curves
        if (found := [t for t in report.trials if _finite(t, metric)])
    }
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(9.6, 0.3 + 2.9 * rows)
    for place, (metric, trials) in enumerate(panels.items()):
        ax = axes(figure, rows, columns, place + 1)
        # the best last, on top
        for trial in sorted(trials, key=lambda t: t.best):
            points = _finite(trial, metric)
            colour = INK if trial.best else COLOUR_OF[trial.state]
            style: Any = {"linewidth": 2.0 if trial.best else 1.1, "alpha": 0.9}
            one = len(points) == 1
            ax.plot(*_columns(points), color=colour, marker="o" if one else None, ms=3, **style)
            if len(trials) <= NAMED_LINES:
                offset: Any = {"xytext": (4, 0), "textcoords": "offset points"}
                ax.annotate(
                    str(trial.number), points[-1], color=colour, fontsize=8, va="center", **offset
                )
        ax.set_title(metric, loc="left", fontsize=10, color=INK)
        ax.set_xlabel("step")
    _legend(figure, [t for trials in panels.values() for t in trials])
    return figure


def _legend(figure: Figure, trials: list[TrialRow]) -> None:
    from matplotlib.lines import Line2D

    states = [state for state in COLOUR_OF if any(t.state == state and not t.best for t in trials)]
    lines = [Line2D([], [], color=COLOUR_OF[state], label=state.lower()) for state in states]
    if any(t.best for t in trials):
        lines.insert(0, Line2D([], [], color=INK, linewidth=2, label="best"))
    figure.legend(
        handles=lines,
        loc="outside lower left",
        ncols=len(lines),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )


def _finite(trial: TrialRow, metric: str) -> list[tuple[int, float]]:
    return [point for point in trial.curves.get(metric, []) if math.isfinite(point[1])]


def _columns(points: list[Any]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
