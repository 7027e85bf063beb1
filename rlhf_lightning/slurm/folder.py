"""What is known of one job: its config, its id, its log, and how it ended.

config.yaml      what it runs, `rlhf --config-dir FOLDER --config-name config`
job.json         {"job_id", "name", "run", "max_requeues", "tasks", "submitted"}
log.txt          what rank 0 printed, in all goes (log-1.txt, ...: the other ranks)
run.json         where its run is, from the process itself
outcome-0.json   how rank 0 ended
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf_lightning.runs.files import read_json, write_json, write_text

FINISHED, FAILED, STOPPED, REQUEUED = "finished", "failed", "stopped", "requeued"


@dataclass(frozen=True)
class Outcome:
    """How a task of a job ended its go."""

    state: str
    """finished | failed | stopped (somebody ended it) | requeued."""
    returncode: int
    reason: str | None
    """One line; None where it is finished."""
    run: str | None
    """The run's directory; None for a task without one."""
    restarts: int
    ended: str
    """ISO time."""


class JobFolder:
    """One job's files, in a folder that the job itself can read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def job_id(self) -> str | None:
        """`12` or `12_3`; None before it was submitted."""
        return read_json(self.path / "job.json").get("job_id")

    @property
    def max_requeues(self) -> int:
        return read_json(self.path / "job.json").get("max_requeues", 0)

    @property
    def tasks(self) -> int:
        return read_json(self.path / "job.json").get("tasks", 1)

    def prepare(self, config: str, *, name: str, max_requeues: int, tasks: int) -> None:
        """Write what the job needs, before it is submitted; nothing is left of an earlier job's end."""
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in (*self.path.glob("outcome-*.json"), self.path / "run.json"):
            leftover.unlink(missing_ok=True)
        write_text(self.config, config)
        write_json(
            self.path / "job.json",
            {"job_id": None, "name": name, "max_requeues": max_requeues, "tasks": tasks},
        )

    def submitted(self, job_id: str) -> None:
        """Note the id that SLURM gave it."""
        when = datetime.now(UTC).isoformat(timespec="seconds")
        record = read_json(self.path / "job.json") | {"job_id": job_id, "submitted": when}
        write_json(self.path / "job.json", record)

    def log(self, rank: int = 0) -> Path:
        """What a rank printed."""
        return self.path / (f"log-{rank}.txt" if rank else "log.txt")

    def place_of(self, rank: int) -> Path:
        """Where a rank's process says where its run is: beside the others, not in their way."""
        return self.path / f"rank-{rank}" if rank else self.path

    def begin(self, rank: int) -> None:
        """A go begins: what an earlier one left is no longer true. For the job."""
        (self.path / f"outcome-{rank}.json").unlink(missing_ok=True)
        self.place_of(rank).mkdir(exist_ok=True)
        (self.place_of(rank) / "run.json").unlink(missing_ok=True)

    def end(self, rank: int, outcome: Outcome) -> None:
        """Leave how a rank ended. For the job."""
        write_json(self.path / f"outcome-{rank}.json", asdict(outcome))

    def outcomes(self) -> dict[int, Outcome]:
        """Rank → how it ended, of those that have."""
        _refresh(self.path)
        found: dict[int, Outcome] = {}
        for rank in range(self.tasks):
            record: dict[str, Any] = read_json(self.path / f"outcome-{rank}.json")
            if record:
                found[rank] = Outcome(**record)
        return found


def job_folder(outputs: str | Path, label: str, key: str) -> JobFolder:
    """`outputs/slurm/<label>-<hash of key>`: the same for the same work, so that it is not submitted twice."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.") or "job"
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return JobFolder(Path(os.path.abspath(outputs)) / "slurm" / f"{name}-{digest}")


def _refresh(path: Path) -> None:
    # over NFS a client may hold on to what a folder looked like: opening it makes it look again
    os.close(os.open(path, os.O_RDONLY))
