"""SLURM's own commands: which jobs are in the queue, how one ended, and putting one back."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from rlhf_lightning.errors import UserError

COMMANDS = ("sinfo", "sbatch", "squeue", "scontrol")
TIMEOUT_S = 60.0

RUNS = ("RUNNING", "SIGNALING", "RESIZING", "CONFIGURING", "SUSPENDED", "STOPPED")
"""States of a job that nobody has ended; SIGNALING is one that SLURM is warning at this moment."""


class NoAnswer(RuntimeError):
    """SLURM could not be asked at this moment."""


def require_slurm(key: str) -> None:
    """Raises: UserError that names `key` unless this is a machine from which jobs can be submitted."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"{key} must be used where SLURM's commands are, got no {missing[0]} on the PATH"
        )
    try:
        _ask(["sinfo", "--noheader", "--format=%R"])
    except NoAnswer as error:
        raise UserError(f"{key} must be used where SLURM answers, got: {error}") from None


def queued() -> dict[str, str]:
    """Id (`12`, `12_3`) → state of our jobs that wait or run; one that SLURM holds back has the reason too.

    Raises: NoAnswer.
    """
    command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%r"]
    found: dict[str, str] = {}
    for line in _ask(command).splitlines():
        job, state, reason = (*line.strip().split("|", maxsplit=2), "", "")[:3]
        # a launch that failed, or somebody's hold: it waits until `scontrol release`
        found[job] = f"{state} ({reason})" if "held" in reason.lower() else state
    return found


def final_state(job: str) -> str | None:
    """FAILED, CANCELLED, NODE_FAIL, TIMEOUT, ...: how a job ended; None if nobody knows any more."""
    try:
        facts = job_facts(job)
        if "JobState" in facts:
            return facts["JobState"]
    except NoAnswer:  # forgotten after MinJobAge; the accounting, where there is one, remembers
        pass
    try:
        text = _ask(
            ["sacct", "--allocations", "--noheader", "--parsable2", "-j", job, "-o", "State"]
        )
    except NoAnswer:
        return None
    words = text.split()
    return words[0] if words else None


def job_facts(job: str) -> dict[str, str]:
    """`scontrol show job` as a dict. Raises: NoAnswer."""
    pairs = (
        item.partition("=") for item in _ask(["scontrol", "show", "job", "--oneliner", job]).split()
    )
    facts: dict[str, str] = {}
    for key, equals, value in pairs:
        if equals:
            facts.setdefault(key, value)
    return facts


def requeue(job: str) -> None:
    """Put a job back into the queue; SLURM ends what it still runs. Raises: NoAnswer."""
    _ask(["scontrol", "requeue", job])


def cancel(job: str) -> None:
    """End a job, or take it out of the queue. Raises: NoAnswer."""
    _ask(["scancel", job])


@dataclass(frozen=True)
class Standing:
    """What SLURM thinks of a job whose process was told to stop."""

    state: str
    reason: str
    restarts: int
    preempted: bool = False
    """It has ended for another job."""

    @property
    def over_time(self) -> bool:
        """Whether its time limit has come."""
        return self.reason == "TimeLimit" or self.state == "TIMEOUT"

    @property
    def will_be_killed(self) -> bool:
        """Whether `KillWait` is all that is left to it."""
        return self.over_time or (self.preempted and self.state not in RUNS)

    def wants_requeue(self, restarts: int) -> bool:
        """Whether it is the job's own part to ask for another go; `restarts` is its count in this one.

        Not where SLURM is at it already (`scontrol requeue`, a node that is taken down), nor where somebody cancelled
        the job.
        """
        if self.restarts > restarts:
            return False
        return self.state in RUNS or self.over_time or self.preempted


def standing(job: str) -> Standing:
    """Raises: NoAnswer."""
    facts = job_facts(job)
    restarts = facts.get("Restarts", "0")
    return Standing(
        facts.get("JobState", "?"),
        facts.get("Reason", "?"),
        int(restarts) if restarts.isdigit() else 0,
        _was_preempted(facts),
    )


PREEMPTION_S = 300.0
"""A job that ends this long after it was preempted ends for that; SLURM stamps it also where it only suspends a job."""


def _was_preempted(facts: Mapping[str, str]) -> bool:
    try:
        preempted, ended = (datetime.fromisoformat(facts[k]) for k in ("PreemptTime", "EndTime"))
    except (KeyError, ValueError):  # None, Unknown
        return False
    return abs((ended - preempted).total_seconds()) <= PREEMPTION_S


def _without(environ: Mapping[str, str], *beginnings: str) -> dict[str, str]:
    return {name: value for name, value in environ.items() if not name.startswith(beginnings)}


def _ask(command: Sequence[str]) -> str:
    # a user's SQUEUE_STATES would hide jobs
    environment = _without(os.environ, "SQUEUE_", "SACCT_")
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoAnswer(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise NoAnswer(f"{command[0]}: {lines[-1]}")
    return done.stdout
