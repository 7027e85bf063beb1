"""What the processes of a stage are told, and what each of them tells at its end. JSON files in one folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import Interrupted, Pruned, RunFailed, UserError
from rlhf_lightning.runs import Artifact
from rlhf_lightning.runs.files import read_json, write_json


@dataclass(frozen=True)
class Orders:
    """One stage's task. The config is config.yaml beside it."""

    task: str
    round: int
    path: str
    """The run's directory, or the file that a task without a run writes."""
    name: str
    seed: int
    identity: dict[str, Any]
    continued: bool
    duration_s: float
    """Seconds of work of earlier processes."""
    parents: dict[str, tuple[str, str | None, str]]
    """Role → folder, stage and sha256 of an artifact that the parent has verified."""

    def write(self, folder: Path) -> None:
        """To `orders.json`."""
        write_json(folder / "orders.json", asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Orders:
        """What `write` wrote."""
        found = read_json(folder / "orders.json")
        found["parents"] = {role: tuple(parent) for role, parent in found["parents"].items()}
        return cls(**found)

    def artifacts(self) -> dict[str, Artifact]:
        """The parents again."""
        return {
            role: Artifact(Path(path), stage, sha256, _manifest(Path(path)))
            for role, (path, stage, sha256) in self.parents.items()
        }


def _manifest(folder: Path) -> dict[str, Any] | None:
    file = folder / "manifest.json"
    return read_json(file) if file.exists() else None


def described(parents: Mapping[str, Artifact]) -> dict[str, tuple[str, str | None, str]]:
    """The parents as `Orders` have them."""
    return {
        role: (str(parent.path), parent.stage, parent.sha256) for role, parent in parents.items()
    }


@dataclass(frozen=True)
class Outcome:
    """How one process ended."""

    kind: str
    """finished, pruned, interrupted, user, failed or error."""
    message: str = ""
    metrics: dict[str, float] | None = None
    signum: int = 0
    time: float = 0.0
    """Epoch seconds: the first to fail says why."""

    @classmethod
    def of(cls, error: BaseException) -> Outcome:
        """What an exception means."""
        if isinstance(error, Interrupted):
            return cls("interrupted", str(error), signum=error.signum, time=time.time())
        kinds = ((Pruned, "pruned"), (UserError, "user"), (RunFailed, "failed"))
        kind = next((name for known, name in kinds if isinstance(error, known)), "error")
        own = f"{type(error).__name__}: {error}" if kind == "error" else str(error)
        return cls(kind, own, time=time.time())

    def error(self) -> BaseException:
        """The exception that says the same in the parent."""
        if self.kind == "interrupted":
            return Interrupted(self.signum)
        kinds = {"pruned": Pruned, "user": UserError}
        return kinds.get(self.kind, RunFailed)(self.message)

    def write(self, folder: Path, rank: int) -> None:
        """To `outcome-RANK.json`."""
        write_json(folder / f"outcome-{rank}.json", asdict(self))

    @classmethod
    def read(cls, folder: Path, rank: int) -> Outcome | None:
        """What a process wrote; None if it was ended before."""
        found = read_json(folder / f"outcome-{rank}.json")
        return cls(**found) if found else None
