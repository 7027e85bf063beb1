"""One run: where its files lie and what its metrics.json says."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import Interrupted, Pruned, RunFailed, UserError
from rlhf_lightning.runs.artifact import recover_artifact
from rlhf_lightning.runs.files import (
    git_commit,
    is_temporary,
    json_number,
    link,
    read_json,
    write_json,
    write_text,
)
from rlhf_lightning.runs.identity import FORMAT_VERSION, plain, run_hash
from rlhf_lightning.runs.lease import Lease
from rlhf_lightning.runs.search import is_run
from rlhf_lightning.runs.signals import Stop


class Run:
    """The files of one run, and its status.

    `claim` makes it; it may be written while the claim lasts.
    """

    def __init__(
        self, path: Path, *, task: str, name: str, seed: int, identity: Mapping[str, Any]
    ) -> None:
        self.path, self.task, self.name, self.seed = path, task, name, seed
        self.identity: dict[str, Any] = plain(identity)
        self.hydra_dir = path / ".hydra"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.artifact = path / "artifact"
        self.identity_json = path / "identity.json"
        self.metrics_json = path / "metrics.json"
        self.metrics_csv = path / "metrics.csv"
        self.log = path / "log.txt"
        self.report = path / "report.html"
        self.continued = False
        """Whether an earlier process began this run."""
        self._lease: Lease | None = None
        self._outcome: tuple[str, str | None] | None = None
        self._metrics: dict[str, Any] = {}
        self._started, self._before_s, self._clock = "", 0.0, 0.0

    @property
    def status(self) -> str | None:
        """Of metrics.json: running, finished, failed, interrupted or pruned; None without it."""
        return read_json(self.metrics_json).get("status")

    @property
    def finished(self) -> bool:
        """Nothing is left to do here."""
        return self.status == "finished"

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics that metrics.json holds."""
        return read_json(self.metrics_json).get("metrics", {})

    @property
    def duration_s(self) -> float:
        """Seconds of work so far, also by earlier processes; waiting for a lease is none."""
        return self._before_s + (time.monotonic() - self._clock if self._clock else 0.0)

    def update(self, metrics: Mapping[str, Any] | None = None) -> None:
        """Add metrics and write metrics.json. Call it with each checkpoint: a kill then keeps the
        duration.

        Raises: RunFailed if another process has taken the run over.
        """
        self._metrics |= {name: json_number(value) for name, value in (metrics or {}).items()}
        self._write("running")

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """The run is complete; the status is written when the claim ends."""
        self._metrics |= {name: json_number(value) for name, value in metrics.items()}
        self._outcome = "finished", None

    def prune(self, reason: str, metrics: Mapping[str, Any] | None = None) -> None:
        """A sweep gave this run up: it ends as pruned, also if an exception carries the news on."""
        self._metrics |= {name: json_number(value) for name, value in (metrics or {}).items()}
        self._outcome = "pruned", reason

    def link(self, target: str | Path, name: str) -> None:
        """Link a name in this run to another run: `run.link(sft.path, "round-1/sft")`."""
        link(target, self.path / name)

    def check(self) -> None:
        """Raises: RunFailed if another process took the run over: this one slept too long."""
        if self._lease is None or not self._lease.is_held():
            raise RunFailed(
                f"{self.path}: another process owns this run now; nothing more is written"
            )

    def begin(
        self, lease: Lease, config_yaml: str, overrides: Sequence[str], say: Callable[[str], None]
    ) -> None:
        """Mark the run as running, new or continued. For `claim`."""
        self._lease = lease
        before = read_json(self.metrics_json)
        self.continued = is_run(self.path)
        for leftover in self.path.iterdir():  # what a kill cut short
            if is_temporary(leftover) and leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
            elif is_temporary(leftover):
                leftover.unlink()
        recover_artifact(self.artifact)
        record = {
            "task": self.task,
            "name": self.name,
            "seed": self.seed,
            "hash": run_hash(self.identity),
        }
        record |= {"format_version": FORMAT_VERSION, "identity": self.identity}
        if not self.continued:
            write_json(self.identity_json, record)
        commits = before.get("git_commit"), git_commit()
        if all(commits) and commits[0] != commits[1]:
            say(
                f"{self.path} was last written by commit {commits[0]} and goes on with {commits[1]}"
            )
        self.hydra_dir.mkdir(exist_ok=True)
        write_text(self.hydra_dir / "config.yaml", config_yaml)
        # a JSON string is a YAML scalar too
        lines = "".join(f"- {json.dumps(item, ensure_ascii=False)}\n" for item in overrides)
        write_text(self.hydra_dir / "overrides.yaml", lines or "[]\n")
        # of a run that was given up there are curves' last values, which are none of its results
        self._metrics = {} if before.get("status") == "pruned" else before.get("metrics", {})
        self._started = before.get("started") or _now()
        self._before_s, self._clock = before.get("duration_s", 0.0), time.monotonic()
        self._write("running")

    def _write(self, status: str, reason: str | None = None) -> None:
        self.check()
        record = {
            "task": self.task,
            "name": self.name,
            "seed": self.seed,
            "status": status,
            "duration_s": round(self.duration_s, 3),
            "metrics": self._metrics,
            "reason": reason,
            "started": self._started,
            "updated": _now(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job_id": os.environ.get("SLURM_JOB_ID"),
            "git_commit": git_commit(),
        }
        write_json(self.metrics_json, record)

    def end(self, error: BaseException | None, stop: Stop | None) -> None:
        """Write what became of a run that was begun; `error` is what left its block. For `claim`.

        Raises: RunFailed if all went well but another process owns the run by now; RuntimeError
            without `finish`.
        """
        if error is None:
            if self._outcome is None:
                raise RuntimeError(f"{self.path}: the block ended without run.finish")
            self._write(*self._outcome)
            if self._outcome[0] == "finished":  # nothing goes on from them
                shutil.rmtree(self.checkpoints, ignore_errors=True)
        elif self._clock and self._lease is not None and self._lease.is_held():
            pruned = self._outcome if self._outcome and self._outcome[0] == "pruned" else None
            with suppress(OSError):  # the error itself matters more
                self._write(*(pruned or _outcome_of(error, stop)))


def _outcome_of(error: BaseException, stop: Stop | None) -> tuple[str, str]:
    """Status and reason of a run that an exception ended."""
    if isinstance(error, Pruned):
        return "pruned", str(error)
    stopped = stop is not None and stop.requested is not None and isinstance(error, SystemExit)
    interrupted = stopped or isinstance(error, Interrupted | KeyboardInterrupt)
    ours = isinstance(error, RunFailed | UserError | Interrupted)
    reason = str(error) if ours else f"{type(error).__name__}: {error}"
    return ("interrupted" if interrupted else "failed"), reason


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
