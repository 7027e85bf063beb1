"""`task=runs`: the runs there are, as a table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.table import Table
from rich.text import Text

from rlhf_lightning.foreign import without_controls
from rlhf_lightning.runs.identity import differences
from rlhf_lightning.runs.search import RunSummary, find_runs

KEY_METRICS = (
    "ppo/gold_score",
    "ppo/win_rate_vs_sft",
    "ppo/kl_k1",
    "ppo/validation/gold_score",
    "ppo/validation/kl_k1",
    "reward/pairwise_accuracy",
    "reward/gold_accuracy",
)
"""Shown first; a run that has none of them shows its first ones."""

COLOURS = {
    "finished": "green",
    "running": "cyan",
    "failed": "red",
    "interrupted": "yellow",
    "pruned": "magenta",
}


def runs_table(outputs: str | Path) -> Table:
    """Runs below `outputs`, oldest first.

    Columns: name, status, age, duration, metrics, and the config keys that differ from the previous
    run of the same task.
    """
    table = Table(title=f"Runs in {outputs}")
    table.add_column("run", overflow="fold")
    for name in ("status", "age", "took", "metrics", "differs from the previous run of its task"):
        table.add_column(name)
    previous: dict[str, RunSummary] = {}
    for run in find_runs(outputs):
        before = previous.get(run.task)
        found = differences(before.identity, run.identity) if before else []
        cells = (
            _name(run, Path(outputs)),
            Text(without_controls(run.status), style=COLOURS.get(run.status, "")),
            _age(run.started),
            _duration(run.duration_s),
            _metrics(run),
            "\n".join(str(difference) for difference in found),
        )
        # a cell is text as it stands: brackets in it are no markup
        table.add_row(
            *(cell if isinstance(cell, Text) else Text(without_controls(cell)) for cell in cells)
        )
        previous[run.task] = run
    return table


def _name(run: RunSummary, outputs: Path) -> str:
    return run.path.relative_to(outputs).as_posix() if run.path != outputs else run.name


def _metrics(run: RunSummary) -> str:
    if run.reason:
        return run.reason
    names = [name for name in KEY_METRICS if name in run.metrics]
    names = names or [name for name in run.metrics if not name.startswith("time/")]
    shown = ((name, run.metrics[name]) for name in names[:3])
    return "\n".join(f"{name} {'-' if value is None else f'{value:.4g}'}" for name, value in shown)


def _age(started: str) -> str:
    if not started:
        return "?"
    return _duration((datetime.now(UTC) - datetime.fromisoformat(started)).total_seconds())


def _duration(seconds: float) -> str:
    """`42s`, `3m 20s`, `5h 10m`, `2d 3h`."""
    whole = timedelta(seconds=max(0, round(seconds)))
    hours, rest = divmod(whole.seconds, 3600)
    minutes, left = divmod(rest, 60)
    if whole.days:
        return f"{whole.days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {left}s" if minutes else f"{left}s"
