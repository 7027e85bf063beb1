"""The trial's side: how a process learns that it is one, and tells where its run is.

The sweep sets environment variables: they are no part of a config, so never of a run's identity.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.runs.files import read_json, write_json
from rlhf_lightning.sweeps.settings import PrunerSettings, RuleSettings

FOLDER = "RLHF_TRIAL"
"""Folder with the trial's config.yaml and trial.json."""
STORAGE = "RLHF_TRIAL_STORAGE"
"""URL of a database; it may hold a password, so it is in no file."""
PARENT = "RLHF_TRIAL_PARENT"
"""Process id of the sweep, where it starts the trial's process itself."""
PARENT_POLL_S = 1.0


def label(number: int) -> str:
    """`0007`."""
    return f"{number:04d}"


def config_folder(sweep: Path, number: int) -> Path:
    """Where a trial has its config and its orders, and says where its run is."""
    return sweep / "configs" / label(number)


@dataclass(frozen=True)
class TrialOrders:
    """What trial.json says."""

    folder: Path
    sweep: Path
    study: str
    number: int
    directions: list[str]
    pruner: PrunerSettings
    rules: RuleSettings

    def write(self) -> None:
        """Leave the orders, and no run of an earlier attempt."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "run.json").unlink(missing_ok=True)
        record = {
            "sweep": str(self.sweep),
            "study": self.study,
            "number": self.number,
            "directions": self.directions,
            "pruner": vars(self.pruner),
            "rules": vars(self.rules),
        }
        write_json(self.folder / "trial.json", record)

    def environment(self, storage: str | None, *, child: bool) -> dict[str, str]:
        """What the trial's process gets besides ours; `child`: no other command stands between it and us."""
        url = {STORAGE: storage} if storage else {}
        parent = {PARENT: str(os.getpid())} if child else {}
        return {FOLDER: str(self.folder), **url, **parent}


def orders(environ: Mapping[str, str] = os.environ) -> TrialOrders | None:
    """The orders of this process; None if it is no trial."""
    folder = environ.get(FOLDER)
    found = read_json(Path(folder) / "trial.json") if folder else {}
    if not folder or not found:
        return None
    return TrialOrders(
        folder=Path(folder),
        sweep=Path(found["sweep"]),
        study=found["study"],
        number=found["number"],
        directions=found["directions"],
        pruner=PrunerSettings(**found["pruner"]),
        rules=RuleSettings(**found["rules"]),
    )


def open_trial(given: TrialOrders, environ: Mapping[str, str] = os.environ) -> Any:
    """This process's trial in the study."""
    import optuna

    from rlhf_lightning.sweeps.pruning import make_pruner
    from rlhf_lightning.sweeps.storage import open_storage

    storage = open_storage(given.sweep, environ.get(STORAGE))
    study = optuna.load_study(
        study_name=given.study, storage=storage, pruner=make_pruner(given.pruner)
    )
    (frozen,) = (t for t in study.get_trials(deepcopy=False) if t.number == given.number)
    return optuna.trial.Trial(study, frozen._trial_id)


def announce(run: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Tell the sweep where this trial's run is; nothing happens outside of a trial.

    The first to call is the trial itself: a process that it starts for a stage finds the place taken.
    """
    folder = environ.get(FOLDER)
    if not folder:
        return
    place = Path(folder) / "run.json"
    if not place.exists():
        write_json(place, {"run": os.path.abspath(run), "pid": os.getpid()})
        # the sweep may have died while this process began: then the parent is another one already
        _end_with_parent(int(environ.get(PARENT) or os.getppid()))


def announced(folder: Path) -> Path | None:
    """Where the trial of a folder has its run; None before it said so."""
    run = read_json(folder / "run.json").get("run")
    return Path(run) if run else None


def _end_with_parent(parent: int) -> None:
    """Stop in good order when the sweep's process dies: nobody would read the result."""

    def watch() -> None:
        waiting = threading.Event()
        while os.getppid() == parent:
            waiting.wait(PARENT_POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent of the trial", daemon=True).start()
