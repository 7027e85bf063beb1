"""The short form of a search's page, for the console."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from rlhf_lightning.evaluation.report import duration, number
from rlhf_lightning.evaluation.sweep_report import (
    SweepReport,
    TrialRow,
    in_order,
    parameter,
    summary_line,
)

SHOWN = 10
"""Trials in the table; the page has all."""
STYLES = {"COMPLETE": "green", "PRUNED": "magenta", "FAIL": "red", "RUNNING": "cyan"}


def table_of(report: SweepReport) -> Table:
    """The best trials first, then the others."""
    table = Table(title=summary_line(report))
    names = ("trial", "state", *report.objectives, "parameters", "took", "why")
    for name in names:
        table.add_column(name, overflow="fold")
    ordered = in_order(report)
    for trial in ordered[:SHOWN]:
        mark = " *" if trial.best else ""
        values = [number(value, 4) for value in trial.values or []]
        cells = (
            Text(f"{trial.number}{mark}"),
            Text(trial.state, style=STYLES.get(trial.state, "")),
            *(Text(cell) for cell in values or [""] * len(report.objectives)),
            Text("\n".join(f"{key}={parameter(value)}" for key, value in trial.params.items())),
            Text(duration(trial.duration_s)),
            Text(_why(trial)),
        )
        table.add_row(*cells)
    left = len(ordered) - SHOWN
    if left > 0:
        table.caption = f"and {left} more: the page has all"
    return table


def best_lines(report: SweepReport) -> list[str]:
    """What is best, or that nothing is yet."""
    if not report.best:
        what = " satisfies the constraints" if report.complete else " is complete"
        return [f"best: no trial{what} yet"]
    name = "best" if len(report.objectives) == 1 else "front"
    lines = []
    for trial in report.best:
        found = zip(report.objectives, trial.values or (), strict=True)
        values = ", ".join(f"{key} {number(value, 4)}" for key, value in found)
        params = " ".join(f"{key}={parameter(value)}" for key, value in trial.params.items())
        lines.append(f"{name}: trial {trial.number}, {values} ({params})")
    return lines


def _why(trial: TrialRow) -> str:
    broken = [f"breaks {name}" for name, excess in trial.violations.items() if excess > 0]
    return trial.reason or "; ".join(broken)
