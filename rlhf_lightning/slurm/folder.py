"""What is known of one job: its config, its id, its log, and how it ended.

config.yaml      what it runs, `rlhf --config-dir FOLDER --config-name config`
job.json         {"job_id", "name", "max_requeues", "command", "after", "submitted"}
log.txt          what the command printed, in all goes
go.json          the job and its restart count: which go is the present one
run.json         where its run is, from the process itself
outcome.json     how the last go ended
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf_lightning.runs.files import read_json, write_json, write_text

SCRIPTS = "submitit"
"""Beside the folders of jobs: their batch scripts and what was printed before our code spoke."""

FINISHED, FAILED, STOPPED, REQUEUED = "finished", "failed", "stopped", "requeued"


@dataclass(frozen=True)
class Outcome:
    """How a go of a job ended."""

    state: str
    """finished | failed | stopped (somebody ended it) | requeued."""
    returncode: int
    reason: str | None
    """One line; None where it is finished."""
    run: str | None
    """The run's directory; None for a task without one."""
    job: str | None
    """`12` or `12_3`: whose end this is."""
    restarts: int
    ended: str
    """ISO time."""


class JobFolder:
    """One job's files, in a folder that the job itself can read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path / "log.txt"

    @property
    def record(self) -> dict[str, Any]:
        """What job.json says; {} before it was prepared."""
        return read_json(self.path / "job.json")

    @property
    def job_id(self) -> str | None:
        """`12` or `12_3`; None before it was submitted."""
        return self.record.get("job_id")

    def prepare(
        self,
        config: str,
        *,
        name: str,
        max_requeues: int,
        command: Sequence[str] | None,
        after: Sequence[str] = (),
    ) -> None:
        """Write what the job needs, before it is submitted; nothing is left of an earlier job's end.

        Args:
            after: ids of jobs that must have ended well before it begins.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.begin(None, 0)
        write_text(self.path / "config.yaml", config)
        record = {"job_id": None, "name": name, "max_requeues": max_requeues}
        record |= {"command": list(command) if command else None, "after": list(after)}
        write_json(self.path / "job.json", record)

    def submitted(self, job_id: str) -> None:
        """Note the id that SLURM gave it."""
        when = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(self.path / "job.json", self.record | {"job_id": job_id, "submitted": when})

    def begin(self, job: str | None, restarts: int) -> None:
        """A go begins: what an earlier one left is no longer true. None: a job that has no id yet."""
        write_json(self.path / "go.json", {"job": job, "restarts": restarts})
        for name in ("outcome.json", "run.json"):
            (self.path / name).unlink(missing_ok=True)

    def end(self, outcome: Outcome) -> None:
        """Leave how a go ended. For the job.

        A go that SLURM lost sight of may live on beside the next one: its end is nobody's business.
        """
        go = read_json(self.path / "go.json")
        if go.get("job") == outcome.job and go.get("restarts", 0) <= outcome.restarts:
            write_json(self.path / "outcome.json", asdict(outcome))

    def outcome(self) -> Outcome | None:
        """How the last go ended; None while one is under way."""
        # over NFS a client may hold on to what a folder looked like: opening it makes it look again
        os.close(os.open(self.path, os.O_RDONLY))
        record = read_json(self.path / "outcome.json")
        return Outcome(**record) if record else None


def batch_log(folder: JobFolder) -> Path:
    """What a job prints before our code speaks: the file that submitit names in its batch script."""
    return folder.path.parent / SCRIPTS / f"{folder.job_id}_0_log.err"


def job_folder(outputs: str | Path, label: str, key: str) -> JobFolder:
    """`outputs/slurm/<label>-<hash of key>`: the same for the same work, so that it is not submitted twice."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.") or "job"
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return JobFolder(Path(os.path.abspath(outputs)) / "slurm" / f"{name}-{digest}")
