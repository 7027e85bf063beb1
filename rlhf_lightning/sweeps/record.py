"""What a sweep's directory shows: a record of each trial, a link to its run, best.yaml or pareto/.

    sweep.json           what is searched: the sweep's identity
    study.journal        the study (unless storage is a database)
    trials/0007          link to the run
    trials/0007.json     parameters, state, reason, values, times
    configs/0007/        the resolved config that the trial's process is started with
    logs/0007.txt        what it printed
    tensorboard/0007     its parameters and objectives, for TensorBoard's HPARAMS page
    best.yaml            the best trial's config; with several objectives pareto/0007.yaml

All of it is computed from the study, so a kill between two writes is mended by the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rlhf_lightning.runs.files import link, read_json, write_json, write_text
from rlhf_lightning.sweeps.child import label
from rlhf_lightning.sweeps.comparisons import Comparison
from rlhf_lightning.sweeps.queue import OVERRIDES, REASON, RETRY_OF, RUN, WORKER
from rlhf_lightning.sweeps.samplers import METRICS
from rlhf_lightning.sweeps.settings import SweepSettings
from rlhf_lightning.sweeps.tensorboard import write_trials


def record_of(
    trial: Any, settings: SweepSettings, constraints: Sequence[Comparison]
) -> dict[str, Any]:
    """One trial as JSON."""
    attributes = trial.user_attrs
    complete = trial.state.name == "COMPLETE"
    metrics = attributes.get(METRICS, {})
    started, ended = trial.datetime_start, trial.datetime_complete
    return {
        "number": trial.number,
        "state": trial.state.name,
        "reason": attributes.get(REASON),
        "params": dict(trial.params),
        "values": dict(zip(settings.objectives, trial.values, strict=True)) if complete else None,
        "constraints": {str(c): c.violation(metrics) <= 0 for c in constraints}
        if complete
        else None,
        "retry_of": attributes.get(RETRY_OF),
        "run": attributes.get(RUN),
        "overrides": attributes.get(OVERRIDES),
        "started": _iso(started),
        "ended": _iso(ended),
        "duration_s": round((ended - started).total_seconds(), 3) if started and ended else None,
        "worker": attributes.get(WORKER),
    }


def sync(
    folder: Path, trials: Iterable[Any], settings: SweepSettings, constraints: Sequence[Comparison]
) -> list[Any]:
    """Write what is not yet as the study says; returns the best trials. Under the queue's lock."""
    trials = list(trials)
    (folder / "trials").mkdir(exist_ok=True)
    for trial in trials:
        place = folder / "trials" / f"{label(trial.number)}.json"
        record = record_of(trial, settings, constraints)
        if read_json(place) != record:
            write_json(place, record)
        run = trial.user_attrs.get(RUN)
        name = folder / "trials" / label(trial.number)
        if run and not name.is_symlink():
            link(run, name)
    write_trials(folder, trials, settings.objectives)
    best = best_trials(trials, settings.directions, constraints)
    if len(settings.objectives) == 1:
        if best:
            _write_config(folder, best[0], folder / "best.yaml", settings)
        return best
    front = {label(trial.number): trial for trial in best}
    (folder / "pareto").mkdir(exist_ok=True)
    for name, trial in front.items():
        _write_config(folder, trial, folder / "pareto" / f"{name}.yaml", settings)
    for file in (folder / "pareto").glob("*.yaml"):
        if file.stem not in front:
            file.unlink()
    return best


def best_trials(
    trials: Iterable[Any], directions: Sequence[str], constraints: Sequence[Comparison]
) -> list[Any]:
    """The best complete trial that satisfies the constraints, the earliest of equals; of several objectives all
    that no other one is better than."""
    allowed = [
        t
        for t in trials
        if t.state.name == "COMPLETE"
        and all(c.violation(t.user_attrs.get(METRICS, {})) <= 0 for c in constraints)
    ]
    signs = [-1.0 if direction == "maximize" else 1.0 for direction in directions]
    losses = {t.number: [s * v for s, v in zip(signs, t.values, strict=True)] for t in allowed}
    if len(directions) == 1:
        return sorted(allowed, key=lambda t: (losses[t.number], t.number))[:1]
    return [
        t
        for t in allowed
        if not any(_dominates(losses[o.number], losses[t.number]) for o in allowed)
    ]


def _dominates(a: list[float], b: list[float]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def _write_config(folder: Path, trial: Any, place: Path, settings: SweepSettings) -> None:
    values = zip(settings.objectives, trial.values, strict=True)
    shown = ", ".join(f"{name}={value!r}" for name, value in values)
    config = (folder / "configs" / label(trial.number) / "config.yaml").read_text(encoding="utf-8")

    text = (
        f"# Trial {trial.number}: {shown}\n"
        f"# Repeat it: rlhf --config-dir <this folder> --config-name {place.stem} run_dir=NEW\n{config}"
    )
    if not place.exists() or place.read_text(encoding="utf-8") != text:
        write_text(place, text)


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone().isoformat(timespec="milliseconds")
