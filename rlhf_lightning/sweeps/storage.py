"""The study: in a journal file of the sweep's directory, or in a database."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError

JOURNAL = "study.journal"


def open_storage(folder: Path, url: str | None) -> Any:
    """Optuna's storage. Raises: UserError where the database cannot be reached."""
    import optuna

    quiet_optuna()
    if url is None:
        return _open_journal(folder)
    try:
        return optuna.storages.RDBStorage(url)
    except Exception as error:  # SQLAlchemy's, or a driver's that is not there
        scheme = re.match(
            r"[\w+]+://", url
        )  # the rest may hold a password, and so may what is said of it
        shown = f"{scheme[0]}..." if scheme else "a URL without ://"
        reason = str(error).splitlines()[0]
        if isinstance(error, ValueError) or any(
            part in reason for part in re.split(r"[:/@]+", url)[2:-1] if part
        ):
            reason = type(error).__name__
        raise UserError(
            f"hydra.sweeper.storage must be a database that can be opened, got {shown}: {reason}"
        ) from None


def _open_journal(folder: Path) -> Any:
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    # the lock is a link to the journal: a relative one would lead nowhere, and Optuna never takes such a lock away
    file = folder.resolve() / JOURNAL

    class Lock(JournalFileSymlinkLock):
        """A symbolic link is made at once or not at all on every NFS. Its owner finds whole entries only."""

        def acquire(self) -> bool:
            taken = super().acquire()
            try:
                _mend(file)
            except BaseException:
                self.release()
                raise
            return taken

    lock = Lock(str(file))
    lock.acquire()
    lock.release()
    return optuna.storages.JournalStorage(JournalFileBackend(str(file), lock_obj=lock))


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


def _mend(file: Path) -> None:
    """Cut a last line that a crash left half-written: what follows it could not be read."""
    if not file.exists():
        return
    with open(file, "r+b") as journal:
        size = journal.seek(0, os.SEEK_END)
        if size == 0:
            return
        journal.seek(size - 1)
        if journal.read(1) == b"\n":
            return
        journal.seek(0)
        whole = journal.read().rfind(b"\n") + 1
        logging.getLogger("rlhf_lightning").warning(
            "%s: %d bytes of an unfinished entry are cut", file, size - whole
        )
        journal.truncate(whole)
        journal.flush()
        os.fsync(journal.fileno())
