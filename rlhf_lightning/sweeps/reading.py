"""A sweep's directory as it is now, without changing it: also while others work on it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.files import read_json
from rlhf_lightning.runs.lease import is_held
from rlhf_lightning.sweeps.child import label
from rlhf_lightning.sweeps.comparisons import Comparison, parse_all
from rlhf_lightning.sweeps.queue import REASON, RETRY_OF, RUN, WORKER
from rlhf_lightning.sweeps.samplers import METRICS
from rlhf_lightning.sweeps.settings import SweepSettings, settings_from
from rlhf_lightning.sweeps.storage import JOURNAL, quiet_optuna

log = logging.getLogger("rlhf_lightning")


@dataclass(frozen=True)
class FoundSweep:
    """What sweep.json and the study say."""

    folder: Path
    settings: SweepSettings
    """Those that are the sweep's identity; the others have their defaults."""
    space: dict[str, Any]
    """Key → Optuna's distribution; a custom function's parameters are not in it."""
    constraints: list[Comparison]
    trials: list[Any]
    """Optuna's FrozenTrials, by number."""
    source: str
    """Where the trials come from, in words."""

    @property
    def log_params(self) -> set[str]:
        """Parameters that are searched in their logarithm."""
        found = {key: d for t in self.trials for key, d in t.distributions.items()} | self.space
        return {key for key, d in found.items() if getattr(d, "log", False)}

    def run_of(self, trial: Any) -> Path | None:
        """A trial's run: where it said, or by its link if the whole has been moved; None before it began."""
        said = trial.user_attrs.get(RUN)
        for place in (self.folder / "trials" / label(trial.number), Path(said) if said else None):
            if place is not None and place.is_dir():
                return place
        # a running trial has announced its run, the study learns of it at its end
        now = read_json(self.folder / "configs" / label(trial.number) / "run.json").get("run")
        return Path(now) if now and Path(now).is_dir() else None

    def reason_of(self, trial: Any) -> str | None:
        """Why it ended as it did; of one that seems to run, that nobody runs it."""
        worker = trial.user_attrs.get(WORKER)
        if trial.state.name != "RUNNING":
            return trial.user_attrs.get(REASON)
        if worker and is_held(self.folder / "workers" / worker):
            return None
        return "its sweep process has died: the same command goes on with the sweep"

    def violations_of(self, trial: Any) -> dict[str, float]:
        """Constraint → how far a complete trial breaks it."""
        if trial.state.name != "COMPLETE":
            return {}
        return {str(c): c.violation(trial.user_attrs.get(METRICS, {})) for c in self.constraints}


def read_sweep(folder: Path) -> FoundSweep:
    """The sweep of a directory. Raises: UserError if it is none."""
    from optuna.distributions import json_to_distribution

    identity = read_json(folder / "sweep.json")
    if not {"sweeper", "space"} <= identity.keys():
        raise UserError(
            f"sweep must be the directory of a search with Optuna, got {str(folder)!r} without its sweep.json"
        )
    settings = settings_from(identity["sweeper"])
    space = {key: json_to_distribution(text) for key, text in identity["space"].items()}
    trials = _of_journal(folder / JOURNAL)
    source = JOURNAL
    if trials is None:  # the study is in a database, whose address is written nowhere
        files = sorted((folder / "trials").glob("*.json"))
        records = {file.name: read_json(file) for file in files}
        trials = []
        for name, record in records.items():
            if {"number", "state", "params"} <= record.keys():
                trials.append(_of_record(folder, record, settings, space))
            else:
                log.warning("trials/%s cannot be read and is left out", name)
        source = "trials/*.json"
    return FoundSweep(folder, settings, space, parse_all(settings.constraints), trials, source)


def _of_journal(file: Path) -> list[Any] | None:
    if not file.is_file():
        return None
    import optuna
    from optuna.storages.journal import JournalFileBackend

    quiet_optuna()
    # nothing is written, so the lock, which is for writers, is never taken
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(file)))
    studies = storage.get_all_studies()
    if not studies:
        return None
    return storage.get_all_trials(studies[0]._study_id, deepcopy=False)


def _of_record(
    folder: Path, record: Mapping[str, Any], settings: SweepSettings, space: Mapping[str, Any]
) -> Any:
    """The trial of a record; its metrics are those of its run."""
    from optuna.trial import FrozenTrial, TrialState

    number = record["number"]
    metrics = read_json(folder / "trials" / label(number) / "metrics.json").get("metrics", {})
    attributes = {
        key: record.get(key) for key in (REASON, RUN, RETRY_OF, WORKER) if record.get(key)
    }
    if record.get("retry_of") is not None:  # trial 0 is falsy
        attributes[RETRY_OF] = record["retry_of"]
    values = record.get("values")
    return FrozenTrial(
        number=number,
        trial_id=number,
        state=TrialState[record["state"]],
        value=None,
        values=[values[name] for name in settings.objectives] if values else None,
        datetime_start=_time(record.get("started")),
        datetime_complete=_time(record.get("ended")),
        params=record["params"],
        distributions={key: space[key] for key in record["params"] if key in space},
        user_attrs={**attributes, METRICS: metrics},
        system_attrs={},
        intermediate_values={},
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
