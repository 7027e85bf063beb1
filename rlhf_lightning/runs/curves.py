"""Reading metrics.csv: every scalar of a run over time."""

from __future__ import annotations

import csv
from pathlib import Path

Curves = dict[str, list[tuple[int, float]]]
"""Metric name → (step, value) in order of steps."""


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
