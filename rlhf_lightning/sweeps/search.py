"""One command's search: the sweep's directory, its study, and a worker on it."""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.files import is_temporary, read_json, temporary_name, write_json
from rlhf_lightning.runs.identity import canonical_json, differences, plain, run_hash
from rlhf_lightning.sweeps.comparisons import parse_all
from rlhf_lightning.sweeps.pruning import make_pruner
from rlhf_lightning.sweeps.queue import alone
from rlhf_lightning.sweeps.samplers import CONSTRAINED, METRICS, make_sampler
from rlhf_lightning.sweeps.settings import SweepSettings
from rlhf_lightning.sweeps.space import Space
from rlhf_lightning.sweeps.storage import open_storage, open_study
from rlhf_lightning.sweeps.worker import Worker

PLACES = ("outputs", "run_dir", "dry_run", "sweep", "logger", "callbacks", "trainer")
"""Keys of the config that are no part of a sweep's identity: where and how, never what."""
FREE = (
    "name",
    "n_trials",
    "n_jobs",
    "params",
    "storage",
    "max_failure_rate",
    "retry_failed",
    "command",
)
"""Settings of the sweeper that may change when the same sweep goes on."""

log = logging.getLogger("rlhf_lightning")


def search(
    settings: SweepSettings,
    space: Space,
    *,
    name: str,
    base: Mapping[str, Any],
    config_of: Callable[[list[str]], str],
) -> dict[str, Any]:
    """Work on the study until it has its trials; the best trial's metrics, {} where there is no single best one.

    Args:
        base: the config without what is searched.
        config_of: overrides → the text of the config that a trial runs.
    Raises: UserError before anything is written where a setting is wrong; RunFailed; Interrupted.
    """
    constraints = parse_all(settings.constraints)
    make_pruner(settings.pruner)
    make_sampler(settings.sampler, 0)
    if settings.sampler.name == "grid":
        space.grid(settings.sampler.seed)
    identity = identity_of(settings, space, base)
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "sweep"
    study_name = f"{safe}-{run_hash(identity)}"
    folder = Path(base["run_dir"] or Path(base["outputs"]) / "sweeps" / study_name)
    if settings.learned_score_only:
        log.warning(
            "the only objective is the learned score, which PPO is trained to raise: this search finds"
            " reward hacking; add a held-out score or a constraint (hydra.sweeper.constraints)"
        )
    if constraints and settings.sampler.name not in CONSTRAINED:
        log.warning(
            "sampler.name=%s does not learn from constraints: they only say which trial is the best",
            settings.sampler.name,
        )
    if base["dry_run"]:
        _explain(settings, space, folder)
        return {}
    claim_folder(folder, identity)
    with alone(folder):  # a database makes its tables once, but looks for them first
        storage = open_storage(folder, settings.storage)
        study = open_study(storage, study_name, settings.directions)
        claim_study(folder, study)
    log.info("sweep: %s", folder)
    worker = Worker(study, storage, folder, settings, space, constraints, config_of=config_of)
    best = worker.run()
    return dict(best[0].user_attrs.get(METRICS, {})) if len(best) == 1 else {}


def identity_of(settings: SweepSettings, space: Space, base: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two commands the same sweep."""
    searcher = {key: value for key, value in asdict(settings).items() if key not in FREE}
    config = {key: value for key, value in base.items() if key not in PLACES}
    return plain({"space": space.describe(), "sweeper": searcher, "config": config})


def claim_folder(folder: Path, identity: dict[str, Any]) -> None:
    """Make the sweep's directory, or find it there.

    Raises: UserError if it cannot be written, or holds another sweep or something else.
    """
    place = folder / "sweep.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = read_json(place)
        if not there:
            taken = any(not is_temporary(item) for item in folder.iterdir())
            if taken and not read_json(place):  # another process may have begun it meanwhile
                raise UserError(
                    f"run_dir must be empty or a sweep, got {str(folder)!r}, which holds something else"
                )
            write_json(place, identity)
            return
    except OSError as error:
        raise UserError(
            f"run_dir must be a place that can be written, got {str(folder)!r} ({error.strerror})"
        ) from error
    if canonical_json(there) != canonical_json(identity):
        found = "; ".join(str(difference) for difference in differences(there, identity))
        raise UserError(
            f"run_dir must be free or the same sweep, got {str(folder)!r}, a sweep that differs in {found}"
        )


def claim_study(folder: Path, study: Any) -> None:
    """A study and a directory belong to each other: locks, leases and records of trials lie in the one.

    Raises: UserError if the study lives in another directory, or this directory's trials are of another study.
    """
    place = folder / "study.id"
    begun = (folder / "trials").exists()
    draft = temporary_name(place)
    draft.write_text(uuid.uuid4().hex, encoding="utf-8")
    with suppress(FileExistsError):  # another command of the sweep came first
        os.link(draft, place)
    draft.unlink()
    ours = place.read_text(encoding="utf-8")
    theirs = study.user_attrs.get("directory")
    if theirs is None and not begun:
        study.set_user_attr("directory", ours)
    elif theirs != ours:
        which = "is new" if theirs is None else "belongs to another directory"
        raise UserError(
            f"hydra.sweeper.storage must hold the study of {str(folder)!r}, got one that {which}: every command of a"
            " sweep names the same storage and sees the same directory"
        )


def _explain(settings: SweepSettings, space: Space, folder: Path) -> None:
    state = "continued" if (folder / "sweep.json").exists() else "new"
    print(f"{'sweep':<18} {state:<10} {folder}")
    for key, distribution in space.distributions.items():
        print(f"{key:<18} {distribution}")
    if space.custom is not None:
        print(f"{'custom_space':<18} {settings.custom_space}")
