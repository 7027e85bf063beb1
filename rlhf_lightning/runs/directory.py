"""A run's directory: owned by one process, marked with its outcome, continued later."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.files import is_temporary, own_directory, read_json, remove_empty
from rlhf_lightning.runs.identity import canonical_json, differences, run_hash
from rlhf_lightning.runs.lease import HEARTBEAT_S, LIFETIME_S, Lease
from rlhf_lightning.runs.run import Run
from rlhf_lightning.runs.search import is_run
from rlhf_lightning.runs.signals import Stop

__all__ = ["Run", "claim", "run_path"]

_log = logging.getLogger(__name__)


def run_path(outputs: str | Path, task: str, name: str, identity: Mapping[str, Any]) -> Path:
    """`outputs/<task>/<name>-<hash>`: where the run of an identity lives by default."""
    return Path(outputs) / task / f"{name}-{run_hash(identity)}"


@contextmanager
def claim(
    path: str | Path,
    *,
    task: str,
    name: str,
    seed: int,
    identity: Mapping[str, Any],
    config_yaml: str,
    overrides: Sequence[str],
    wait: bool = True,
    say: Callable[[str], None] = _log.warning,
    key: str = "run_dir",
    stop: Stop | None = None,
    lifetime_s: float = LIFETIME_S,
    heartbeat_s: float = HEARTBEAT_S,
) -> Iterator[Run]:
    """Own a run for the length of the block, which does the work and calls `run.finish(metrics)`.

    A run that is finished is yielded as it is: look at `run.finished` first. While another living
    process owns it, this one waits and says for whom. What leaves the block decides the status:
    nothing → finished, `Interrupted` → interrupted, anything else → failed with its message. A
    `UserError` before there is a checkpoint, an artifact or a run inside removes the directory that
    this claim made.

    Args:
        key: the setting that messages name.
        stop: ends the waiting when a signal asks for it.
    Raises: UserError if the place cannot be written, holds something else or another run, or
        (`wait=False`) is owned.
    """
    run = Run(Path(os.path.abspath(path)), task=task, name=name, seed=seed, identity=identity)
    _refuse_another(run, key)
    if run.finished:  # needs no lease, and may lie where we cannot write
        yield run
        return
    lease = Lease(run.path / ".lease", lifetime_s=lifetime_s, heartbeat_s=heartbeat_s)
    try:
        with own_directory(run.path) as made:
            lease.acquire(wait=wait, say=say, key=key, stop=stop)
    except OSError as error:
        raise _unwritable(run.path, key, error) from error
    new = False
    try:
        _refuse_another(run, key)  # another process may have begun it meanwhile
        if run.finished:
            yield run
            return
        new = not is_run(run.path)
        try:
            run.begin(lease, config_yaml, overrides, say)
        except OSError as error:
            raise _unwritable(run.path, key, error) from error
        yield run
        run.end(None, stop)
    except BaseException as error:
        mine = new and isinstance(error, UserError) and lease.is_held()
        if mine and not _has_work(run.path):
            _empty(run.path)
        else:
            run.end(error, stop)
        raise
    finally:
        lease.release()
        # fails, as it should, if there is a run or somebody waits for it
        remove_empty(made)


def _refuse_another(run: Run, key: str) -> None:
    """Raises: UserError unless the path is free, empty, or holds the run of the same identity."""
    where = str(run.path)
    if os.path.exists(run.path) and not os.path.isdir(run.path):
        raise UserError(f"{key} must be a directory, got {where!r}, which is a file")
    if not os.path.exists(run.path):
        return
    if not is_run(run.path):
        try:
            names = [item.name for item in run.path.iterdir() if not is_temporary(item)]
        except OSError as error:
            raise _unwritable(run.path, key, error) from error
        if set(names) - {".lease"}:
            raise UserError(
                f"{key} must be empty or a run, got {where!r}, which holds something else"
            )
        return
    there = read_json(run.identity_json)
    identity = there.get("identity")
    there = {"task": there.get("task"), **(identity if isinstance(identity, dict) else {})}
    here = {"task": run.task, **run.identity}
    if canonical_json(there) != canonical_json(here):
        found = "; ".join(str(difference) for difference in differences(there, here))
        raise UserError(
            f"{key} must be free or the same run, got {where!r}, a run that differs in {found}"
        )


def _unwritable(path: Path, key: str, error: OSError) -> UserError:
    reason = error.strerror or type(error).__name__
    return UserError(f"{key} must be a place that can be written, got {str(path)!r} ({reason})")


def _has_work(path: Path) -> bool:
    """Whether something here took work: a checkpoint, an artifact, sampled data, a link, a run inside."""
    for folder, folders, files in os.walk(path):
        here = Path(folder)
        if here != path and (
            "identity.json" in files
            or (here.name in ("checkpoints", "artifact", "data") and files + folders)
        ):
            return True
        if any((here / name).is_symlink() for name in folders + files):
            return True
    return False


def _empty(path: Path) -> None:
    """Remove all but the lease; the identity last, so that a kill meanwhile leaves a run."""
    for item in sorted(path.iterdir(), key=lambda item: item.name == "identity.json"):
        if item.name == ".lease":
            continue
        if item.is_dir():
            shutil.rmtree(item, ignore_errors=True)
        else:
            item.unlink(missing_ok=True)
