"""A page about a search: every trial, what mattered, what is best, and how each of them learnt."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_lightning.evaluation.page import inline, render_page
from rlhf_lightning.evaluation.report import count, duration, number
from rlhf_lightning.runs.curves import Curves

STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")
"""Optuna's names, in the order in which they are shown."""


@dataclass
class TrialRow:
    """One trial of a search."""

    number: int
    state: str
    """COMPLETE | PRUNED | FAIL | RUNNING | WAITING."""
    reason: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    """Those that this trial has: a conditional space leaves some out."""
    values: list[float] | None = None
    """Of the objectives; None unless COMPLETE."""
    violations: dict[str, float] = field(default_factory=dict)
    """Constraint → how far it is broken; <= 0 where it holds, inf where its metric is unknown."""
    duration_s: float | None = None
    retry_of: int | None = None
    links: dict[str, str] = field(default_factory=dict)
    """Text → place relative to the page."""
    curves: Curves = field(default_factory=dict)
    """Metric → (step, value) of its run so far."""
    best: bool = False
    """The best trial, or one of the front."""

    @property
    def allowed(self) -> bool:
        """Whether it satisfies all constraints."""
        return all(excess <= 0 for excess in self.violations.values())


@dataclass
class Importance:
    """How much of an objective each parameter explains."""

    objective: str
    shares: dict[str, float] = field(default_factory=dict)
    """Parameter → share, summing to 1; empty where it cannot be said."""
    note: str = ""
    """What a reader must know: too few trials, parameters that are left out."""


@dataclass
class SweepReport:
    """All that the page shows."""

    title: str
    objectives: list[str]
    directions: list[str]
    """maximize | minimize, one for each objective."""
    trials: list[TrialRow]
    constraints: list[str] = field(default_factory=list)
    log_params: set[str] = field(default_factory=set)
    """Parameters that are searched in their logarithm."""
    importances: list[Importance] = field(default_factory=list)
    shown_curves: list[str] = field(default_factory=list)
    """Metrics whose curves are drawn, a panel each."""
    notes: list[str] = field(default_factory=list)
    """Warnings to stand at the top."""
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def params(self) -> list[str]:
        """All parameters that any trial has."""
        return list(dict.fromkeys(key for trial in self.trials for key in trial.params))

    @property
    def complete(self) -> list[TrialRow]:
        return [trial for trial in self.trials if trial.values is not None]

    @property
    def best(self) -> list[TrialRow]:
        return [trial for trial in self.trials if trial.best]

    def states(self) -> dict[str, tuple[int, float]]:
        """State → (trials, seconds that they took together)."""
        seen = Counter(trial.state for trial in self.trials)
        took = {
            state: sum(t.duration_s or 0.0 for t in self.trials if t.state == state)
            for state in seen
        }
        return {state: (seen[state], took[state]) for state in STATES if state in seen}


def render(report: SweepReport) -> str:
    """The page as text, which needs no other file and no network; what comes from data is escaped."""
    from rlhf_lightning.evaluation.sweep_figures import figures_of

    figures = [
        (title, inline(figure) if figure else None, caption)
        for title, figure, caption in figures_of(report)
    ]
    filters = (number, count, duration, parameter, excess)
    return render_page("sweep_report.html", filters, report=report, figures=figures)


def summary_line(report: SweepReport) -> str:
    """`16 trials: 12 COMPLETE, 4 FAIL`."""
    counts = ", ".join(f"{n} {state}" for state, (n, _) in report.states().items())
    return f"{len(report.trials)} trial{'' if len(report.trials) == 1 else 's'}: {counts or 'none'}"


def parameter(value: Any) -> str:
    """A parameter as a person would write it: four digits of a float."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def excess(value: float) -> str:
    """How far a constraint is broken."""
    if value <= 0:
        return "holds"
    return "unknown metric" if math.isinf(value) else f"broken by {number(value)}"


def in_order(report: SweepReport) -> Sequence[TrialRow]:
    """The best first: complete ones by the first objective, then what breaks a constraint, then the rest."""
    sign = -1.0 if report.directions[0] == "maximize" else 1.0

    def place(trial: TrialRow) -> tuple[bool, bool, bool, float, int]:
        value = sign * trial.values[0] if trial.values else 0.0
        return (not trial.best, trial.values is None, not trial.allowed, value, trial.number)

    return sorted(report.trials, key=place)
