"""Runs that exist: found on disk, read, and compared."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rlhf_lightning.runs.files import read_json
from rlhf_lightning.runs.identity import Difference, differences
from rlhf_lightning.runs.lease import is_held

NOT_SEARCHED = (".hydra", ".lease", "tensorboard", "checkpoints", "artifact")


@dataclass(frozen=True)
class RunSummary:
    """What `identity.json` and `metrics.json` say of a run."""

    path: Path
    task: str
    name: str
    seed: int
    status: str
    """running | finished | failed | interrupted | pruned; a run whose process was killed counts as
    interrupted."""
    duration_s: float
    started: str
    """ISO time of the first start."""
    metrics: dict[str, float | None]
    identity: dict[str, Any]
    reason: str | None
    """Why it failed or was pruned."""
    host: str | None
    pid: int | None
    git_commit: str | None


def is_run(path: Path) -> bool:
    """Whether a run was begun in this folder."""
    return os.path.isfile(path / "identity.json")


def read_run(path: Path) -> RunSummary:
    """Summary of the run in a folder; what is not there, or not what a run writes, has an empty value."""
    record, found = read_json(path / "identity.json"), read_json(path / "metrics.json")
    status = _of(found.get("status", "running"), str, "?")
    if status == "running" and not is_held(path / ".lease"):
        status = "interrupted"
    metrics: dict[str, Any] = _of(found.get("metrics"), dict, {})
    duration = _of(found.get("duration_s"), (int, float), 0.0)
    return RunSummary(
        path=path,
        task=_of(record.get("task"), str, "?"),
        name=_of(record.get("name"), str, "?"),
        seed=_of(record.get("seed"), int, 0),
        status=status,
        duration_s=duration if 0 <= duration < LONGEST_S else 0.0,
        started=_time(found.get("started")),
        metrics={k: v for k, v in metrics.items() if _is_number(v)},
        identity=_of(record.get("identity"), dict, {}),
        reason=_of(found.get("reason"), str, None),
        host=found.get("host"),
        pid=found.get("pid"),
        git_commit=found.get("git_commit"),
    )


LONGEST_S = 1e9
"""30 years: what is longer is no duration."""


def _of(value: Any, kind: Any, otherwise: Any) -> Any:
    return value if isinstance(value, kind) else otherwise


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return abs(value) < 2**63  # a longer one fits no float
    return isinstance(value, float | None)


def _time(value: Any) -> str:
    """An ISO time with its zone, or nothing."""
    try:
        zone = datetime.fromisoformat(value).tzinfo
    except (TypeError, ValueError):
        return ""
    return value if zone is not None else ""


def find_runs(outputs: str | Path) -> list[RunSummary]:
    """All runs below a folder, at any depth, oldest first.

    Links are not followed: a run lives once.
    """
    runs = []
    for folder, folders, files in os.walk(outputs):
        folders[:] = sorted(name for name in folders if name not in NOT_SEARCHED)
        if "identity.json" in files:
            runs.append(read_run(Path(folder)))
    return sorted(runs, key=lambda run: run.started)


def nearest(
    outputs: str | Path, task: str, identity: Mapping[str, Any]
) -> tuple[RunSummary, list[Difference]] | None:
    """The run of a task that differs in the fewest keys, with those keys: its value → ours.

    Of the runs with the same model and mix, by name; the latest of equals. None if there is none.
    """
    best: tuple[RunSummary, list[Difference]] | None = None
    for run in find_runs(outputs):
        if run.task == task and _named(run.identity) == _named(identity):
            found = differences(run.identity, identity)
            if best is None or len(found) <= len(best[1]):
                best = run, found
    return best


def _named(identity: Mapping[str, Any]) -> list[Any]:
    nodes = (_of(identity.get(node), dict, {}) for node in ("model", "mix"))
    return [node.get("name") for node in nodes]
