"""How a trial's process ended, from its exit code, its run's metrics.json and the end of its log."""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from rlhf_lightning.runs.files import read_json

COMPLETE, PRUNED, FAIL = "COMPLETE", "PRUNED", "FAIL"
TAIL_BYTES = 20_000


@dataclass(frozen=True)
class Outcome:
    """The final state of a trial."""

    state: str
    """COMPLETE | PRUNED | FAIL, as Optuna names them."""
    reason: str | None = None
    values: list[float] | None = None
    """Of the objectives, where the state is COMPLETE."""
    metrics: dict[str, float | None] = field(default_factory=dict)
    """All metrics of the run."""
    hopeless: bool = False
    """Whether running it again cannot help: the config itself is refused."""


def failed(reason: str, *, hopeless: bool = False) -> Outcome:
    """FAIL, with the reason."""
    return Outcome(FAIL, reason, hopeless=hopeless)


def outcome_of(returncode: int, run: Path | None, log: Path, objectives: Sequence[str]) -> Outcome:
    """What became of a process. A run that is finished counts, however its process ended afterwards."""
    record = read_json(run / "metrics.json") if run is not None else {}
    metrics, status = record.get("metrics", {}), record.get("status")
    if status == "finished":
        return _valued(metrics, objectives)
    killed = _signal_text(returncode)
    if killed is not None:
        return Outcome(FAIL, killed, metrics=metrics)
    if status == "pruned":
        return Outcome(PRUNED, record.get("reason"), metrics=metrics)
    reason = (record.get("reason") if status == "failed" else None) or last_line(log)
    text = reason or f"it ended with exit code {returncode} and no message"
    return Outcome(FAIL, text, metrics=metrics, hopeless=returncode == 2)


def _valued(metrics: dict[str, float | None], objectives: Sequence[str]) -> Outcome:
    values: list[float] = []
    for name in objectives:
        if name not in metrics:
            close = get_close_matches(name, list(metrics), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            reason = f"metrics.json has no {name}{hint}"
            return Outcome(FAIL, reason, metrics=metrics, hopeless=True)
        value = metrics[name]
        # metrics.json holds null for what is not finite
        if value is None or not math.isfinite(value):
            return Outcome(FAIL, f"{name} is not finite", metrics=metrics)
        values.append(float(value))
    return Outcome(COMPLETE, None, values, metrics)


def _signal_text(returncode: int) -> str | None:
    """In words, if a signal ended the process; a shell or a container adds 128 to its number."""
    number = -returncode if returncode < 0 else returncode - 128
    if number not in set(signal.Signals):
        return None
    name = signal.Signals(number).name
    hint = " (by hand, or by the system for want of memory)" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"


def last_line(log: Path) -> str | None:
    """The last line that a process said about an error, or its last line; None if it said nothing."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [None])[-1]
