"""The study: in a journal file of the sweep's directory, or in a database."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError

JOURNAL = "study.journal"


def open_storage(folder: Path, url: str | None) -> Any:
    """Optuna's storage. Raises: UserError where the database cannot be reached."""
    import optuna
    from optuna.storages.journal import (
        JournalFileBackend,
        JournalFileSymlinkLock,
    )

    quiet_optuna()
    if url is None:
        file = folder / JOURNAL
        # a symbolic link is made at once or not at all on every NFS
        lock = JournalFileSymlinkLock(str(file))
        _mend(file, lock)
        return optuna.storages.JournalStorage(JournalFileBackend(str(file), lock_obj=lock))
    try:
        return optuna.storages.RDBStorage(url)
    except Exception as error:  # SQLAlchemy's, or a driver's that is not there
        reason = str(error).splitlines()[0]
        shown = url.split("://", maxsplit=1)[0]  # the rest may hold a password
        raise UserError(
            f"hydra.sweeper.storage must be a database that can be opened, got {shown}://...: {reason}"
        ) from error


def quiet_optuna() -> None:
    """Only its warnings: what it says of each trial we say ourselves."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)


def open_study(storage: Any, name: str, directions: list[str]) -> Any:
    """The study, made if it is not there.

    Raises: UserError if it has other directions.
    """
    import optuna

    typed: Any = directions
    study = optuna.create_study(
        storage=storage, study_name=name, directions=typed, load_if_exists=True
    )
    there = [direction.name.lower() for direction in study.directions]
    if there != directions:
        raise UserError(
            f"hydra.sweeper.directions must be those of the study, {there}, got {directions}"
        )
    return study


def _mend(file: Path, lock: Any) -> None:
    """Cut a last line that a crash left half-written: what follows it could not be read."""
    if not file.exists():
        return
    lock.acquire()
    try:
        with open(file, "r+b") as journal:
            content = journal.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                logging.getLogger("rlhf_lightning").warning(
                    "%s: %d bytes of an unfinished entry are cut", file, len(content) - whole
                )
                journal.truncate(whole)
                journal.flush()
                os.fsync(journal.fileno())
    finally:
        lock.release()
