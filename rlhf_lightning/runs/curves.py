"""Reading metrics.csv: every scalar of a run over time."""

from __future__ import annotations

import csv
from pathlib import Path

Curves = dict[str, list[tuple[int, float]]]
"""Metric name → (step, value) in order of steps."""

STAGES = ("sft", "reward", "ppo")
"""Stages of a round, by the names that a pipeline's links have."""


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and whole rows of a metrics.csv; a last row that a kill cut short is left out.

    Raises: OSError if the file cannot be read.
    """
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    rows = list(csv.reader(whole.splitlines()))
    if not rows:
        return ["step"], []
    columns, body = rows[0], rows[1:]
    return columns, [
        dict(zip(columns, row, strict=True)) for row in body if len(row) == len(columns)
    ]


def read_metrics(path: Path | str) -> Curves:
    """The curves of a metrics.csv; empty where there is no such file. Of two values at one step the later counts."""
    path = Path(path)
    if not path.is_file():
        return {}
    columns, rows = read_rows(path)
    found: dict[str, dict[int, float]] = {name: {} for name in columns if name != "step"}
    for row in rows:
        for name, points in found.items():
            if row[name]:
                points[int(row["step"])] = float(row[name])
    return {name: sorted(points.items()) for name, points in found.items() if points}


def run_curves(run: Path) -> Curves:
    """Every scalar of a run; the rounds of a pipeline follow each other on one axis."""
    curves: Curves = {}
    folders = [run, run / "pretrain"]
    rounds = (folder for folder in run.glob("round-*") if folder.name[6:].isdigit())
    for folder in sorted(rounds, key=lambda found: int(found.name[6:])):
        folders += [folder / stage for stage in STAGES]
    for folder in folders:
        for name, points in read_metrics(folder / "metrics.csv").items():
            before = curves.setdefault(name, [])
            last = before[-1][0] if before else 0
            before += [(last + step, value) for step, value in points]
    return curves
