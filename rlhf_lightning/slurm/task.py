"""What a job runs: our command in a process of its own, watched until it ends.

There is one of it in a job, on its first node; a strategy's further processes are the command's own affair. Which
processes of a job get SLURM's signals depends on the cluster, so this one passes them on. The command writes its
checkpoint and ends with 128 + signal; then the job asks SLURM for another go, in which the same command continues the
same run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from rlhf_lightning.errors import UserError
from rlhf_lightning.interpreter import python
from rlhf_lightning.runs.batch_job import BatchJob, batch_job
from rlhf_lightning.slurm.cluster import NoAnswer, requeue, standing
from rlhf_lightning.slurm.folder import FAILED, FINISHED, REQUEUED, STOPPED, JobFolder, Outcome
from rlhf_lightning.sweeps.child import FOLDER, announced
from rlhf_lightning.sweeps.outcome import outcome_of

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
LINGER_S = 120.0
"""A job that is put back is ended by SLURM; leaving by itself before could be taken for its end."""
ATTEMPTS = 5
PAUSE_S = 3.0
POLL_S = 0.2
COMMAND_NOT_FOUND = 127
"""A shell's exit code for it."""


def run_folder(path: str) -> None:
    """The job of a folder. Ends this process with the command's exit code."""
    folder = JobFolder(Path(path))
    command = folder.record.get("command") or [*python(), "-m", "rlhf_lightning"]
    task = Task(folder, max_requeues=folder.record["max_requeues"])
    sys.exit(task.run([*command, "--config-dir", str(folder.path), "--config-name", "config"]))


class Task:
    """One go of a job."""

    def __init__(self, folder: JobFolder | None, *, max_requeues: int) -> None:
        """Without a folder the command prints to this process's output and only the exit code tells how it ended."""
        job = batch_job()
        if job is None:
            raise UserError("SLURM_JOB_ID must be set, got no SLURM job: start this by srun")
        ranks = os.environ.get("SLURM_NTASKS", "1")
        if ranks != "1":
            raise UserError(
                f"srun must start one of this, which starts the ranks itself: --ntasks must be 1, got {ranks}"
            )
        self.job: BatchJob = job
        self.folder, self.max_requeues = folder, max_requeues
        self._signals: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._terms_answered = 0
        self._goes_on = False
        """Another go was asked for while the command still ran."""

    def run(self, command: Sequence[str]) -> int:
        """Run the command to its end, or to the end of this go; returns the exit code."""
        # first of all: until then a signal ends this process without another go
        for signum in SIGNALS:
            signal.signal(signum, self._on_signal)
        if self.folder is not None:
            self.folder.begin(self.job.name, self.job.restarts)
        if self.job.restarts > self.max_requeues:
            return self._give_up()
        try:
            self._process = self._start(command)
        except OSError as error:
            reason = f"{command[0]} cannot be started: {error.strerror}"
            self._say(reason)
            self._leave(FAILED, COMMAND_NOT_FOUND, reason)
            return COMMAND_NOT_FOUND
        code = self._watch(self._process)
        if self._goes_on:
            self._linger()
            return _exit_code(code)
        if self._signals and _ended_by_signal(code):
            return self._stopped(code)
        self._leave(FINISHED if code == 0 else FAILED, code, None if code == 0 else self._why(code))
        return _exit_code(code)

    def _start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Raises: OSError where there is no such command."""
        environment = dict(os.environ)
        environment.pop("HYDRA_FULL_ERROR", None)  # of the command that submitted this
        if self.folder is None:
            return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
        environment[FOLDER] = str(self.folder.path)
        with open(self.folder.log, "ab") as output:
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def _watch(self, process: subprocess.Popen[bytes]) -> int:
        """The exit code, once it has ended."""
        for signum in self._signals:  # that came before there was a process
            process.send_signal(signum)
        while (code := process.poll()) is None:
            if self._signals.count(signal.SIGTERM) > self._terms_answered:
                self._at_limit()
            time.sleep(POLL_S)
        return code

    def _at_limit(self) -> None:
        """At the time limit itself, and in a preemption without grace, SLURM kills after `KillWait`.

        A step may take longer than that: another go is asked for at once. What was done since the last checkpoint is
        lost then, the job is not.
        """
        terms = self._signals.count(signal.SIGTERM)
        try:
            now = standing(self.job.name)
            if now.will_be_killed and now.restarts <= self.job.restarts:
                if self.job.restarts < self.max_requeues:
                    self._put_back(128 + signal.SIGTERM)
                    self._goes_on = True
                else:
                    self._give_up()
            self._terms_answered = terms
        except NoAnswer as error:  # asked again
            self._say(f"cannot ask for another go: {error}")
            time.sleep(PAUSE_S)

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        self._signals.append(signum)
        # SLURM tells every process, others only this one; hearing it twice changes nothing
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signum)

    def _stopped(self, code: int) -> int:
        """The checkpoint is written. Ask for another go, unless SLURM has done so or somebody cancelled the job."""
        for attempt in range(ATTEMPTS):
            try:
                now = standing(self.job.name)
                if now.restarts > self.job.restarts:
                    self._say("SLURM puts this job back into the queue")
                    self._leave(REQUEUED, code, None)
                    break
                if not now.wants_requeue(self.job.restarts):
                    self._leave(STOPPED, code, f"{self._why(code)} while the job was {now.state}")
                    return _exit_code(code)
                if self.job.restarts >= self.max_requeues:
                    return self._give_up()
                self._put_back(code)
                break
            except NoAnswer as error:
                self._say(f"cannot ask for another go: {error}")
                if attempt == ATTEMPTS - 1:
                    self._leave(
                        STOPPED,
                        code,
                        f"{self._why(code)}, and SLURM did not take the job back: {error}",
                    )
                    return _exit_code(code)
                time.sleep(PAUSE_S)
        self._linger()
        return _exit_code(code)

    def _put_back(self, code: int) -> None:
        """Raises: NoAnswer."""
        self._say(f"back into the queue, restart {self.job.restarts + 1} of {self.max_requeues}")
        self._leave(REQUEUED, code, None)
        requeue(self.job.name)

    def _give_up(self) -> int:
        reason = (
            f"started again {self.job.restarts} times, max_requeues={self.max_requeues} allows no more;"
            " the same command continues"
        )
        self._say(reason)
        self._leave(FAILED, 1, reason)
        return 1

    def _leave(self, state: str, code: int, reason: str | None) -> None:
        if self.folder is not None:
            run = announced(self.folder.path)
            now = datetime.now(UTC).isoformat()
            where = str(run) if run else None
            job = self.job
            self.folder.end(Outcome(state, code, reason, where, job.name, job.restarts, now))

    def _why(self, code: int) -> str:
        if self.folder is None:
            return f"exit code {code}"
        run = announced(self.folder.path)
        return outcome_of(code, run, self.folder.log, ()).reason or f"exit code {code}"

    def _say(self, text: str) -> None:
        line = f"rlhf: job {self.job.name}: {text}"
        print(line, file=sys.stderr, flush=True)
        if self.folder is not None:
            with open(self.folder.log, "a", encoding="utf-8") as log:
                log.write(f"{line}\n")

    def _linger(self) -> None:
        end = time.monotonic() + LINGER_S
        while time.monotonic() < end:
            time.sleep(0.5)


def _ended_by_signal(code: int) -> bool:
    """Whether a signal that asks for a stop ended the command: its own exit code, or before it could listen."""
    return code in {n for signum in SIGNALS for n in (128 + signum, -signum)}


def _exit_code(code: int) -> int:
    return 128 - code if code < 0 else code
