"""Runs trials: each a fresh process with its resolved config, several at once, the next as soon as one has ended."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import Interrupted, RunFailed
from rlhf_lightning.interpreter import python
from rlhf_lightning.runs.curves import run_curves
from rlhf_lightning.runs.files import write_text
from rlhf_lightning.runs.lease import Lease
from rlhf_lightning.runs.signals import Stop, graceful_signals
from rlhf_lightning.sweeps.child import TrialOrders, announced, config_folder, label
from rlhf_lightning.sweeps.comparisons import Comparison
from rlhf_lightning.sweeps.outcome import Outcome, failed, outcome_of
from rlhf_lightning.sweeps.queue import Queue, Ticket
from rlhf_lightning.sweeps.record import sync
from rlhf_lightning.sweeps.settings import SweepSettings
from rlhf_lightning.sweeps.space import Space

POLL_S = 0.2
OTHERS_POLL_S = 2.0
KILL_AFTER_S = 300.0
"""Given to trials to write their checkpoint when the sweep is stopped."""

log = logging.getLogger("rlhf_lightning")


@dataclass
class Running:
    """A trial and its process."""

    ticket: Ticket
    process: subprocess.Popen[bytes]
    folder: Path


class Worker:
    """One command's part in a study."""

    def __init__(
        self,
        study: Any,
        storage: Any,
        folder: Path,
        settings: SweepSettings,
        space: Space,
        constraints: Sequence[Comparison],
        *,
        config_of: Callable[[list[str]], str],
    ) -> None:
        """`config_of` composes and checks the config of overrides, as the text of a file that runs again."""
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.folder, self.settings, self.constraints = folder, settings, constraints
        self.queue = Queue(study, storage, folder, self.name, settings, space, constraints)
        self.config_of = config_of
        self._running: list[Running] = []

    def run(self) -> list[Any]:
        """Work until the study has its trials; the best ones.

        Raises: RunFailed if too many failed, Interrupted if a signal asked to stop: the trials that ran wait again.
        """
        lease = Lease(self.queue.lease_of(self.name))
        lease.acquire(wait=False, say=log.warning, key="the sweep's worker")
        try:
            with graceful_signals() as stop:
                try:
                    self._work(stop)
                finally:
                    self._stop_all()
            with self.queue.locked():
                best = self._sync()
        finally:
            lease.release()
        return self._summary(best)

    def _work(self, stop: Stop) -> None:
        idle_since = 0.0
        while True:
            stop.check()
            for one in [one for one in self._running if one.process.poll() is not None]:
                self._finish(one)
            free = len(self._running) < self.settings.n_jobs
            if free and time.monotonic() >= idle_since:
                if self._start_next():
                    continue
                if not self._running and not self.queue.unfinished():
                    return
                # others have the rest; if one of them dies, its trial is ours to end
                idle_since = time.monotonic() + OTHERS_POLL_S
            time.sleep(POLL_S)

    def _start_next(self) -> bool:
        """Whether there was a trial to take."""
        with self.queue.locked():
            ticket = self.queue.take()
            self._sync()
        if ticket is None:
            return False
        try:
            config = self.config_of(ticket.overrides)
        except Interrupted:
            with self.queue.locked():
                self.queue.put_back(ticket.number)
                self._sync()
            raise
        except Exception as error:
            from rlhf_lightning.compose_errors import one_line

            self._end(ticket, failed(one_line(error, ticket.overrides), hopeless=True), None)
            return True
        try:
            self._running.append(self._start(ticket, config))
        except OSError as error:
            self._end(ticket, failed(f"its process could not start: {error}", hopeless=True), None)
        return True

    def _start(self, ticket: Ticket, config: str) -> Running:
        folder = config_folder(self.folder, ticket.number)
        orders = TrialOrders(
            folder=folder.resolve(),
            sweep=self.folder.resolve(),
            study=self.queue.study.study_name,
            number=ticket.number,
            directions=self.settings.directions,
            pruner=self.settings.pruner,
            rules=self.settings.rules,
        )
        orders.write()
        write_text(folder / "config.yaml", config)
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        command = self.settings.command or [*python(), "-m", "rlhf_lightning"]
        ours = orders.environment(self.settings.storage, child=self.settings.command is None)
        environment = {**os.environ, **ours}
        environment.pop("HYDRA_FULL_ERROR", None)  # ours, while Hydra runs the sweep
        # trials at once share the cores: threads that spin would be in each other's way
        if self.settings.n_jobs > 1:
            environment.setdefault("OMP_WAIT_POLICY", "passive")
        with open(logs / f"{label(ticket.number)}.txt", "ab") as output:
            process = subprocess.Popen(
                [*command, "--config-dir", str(folder), "--config-name", "config"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C on a terminal is for the sweep, which then stops its trials in good order
                start_new_session=True,
            )
        shown = " ".join(f"{key}={value}" for key, value in ticket.params.items())
        log.info("trial %d starts: %s", ticket.number, shown)
        return Running(ticket, process, folder)

    def _finish(self, one: Running, *, put_back: bool = False) -> None:
        """Write what became of a process that has ended."""
        self._running.remove(one)
        run = announced(one.folder)
        text = self.folder / "logs" / f"{label(one.ticket.number)}.txt"
        outcome = outcome_of(one.process.returncode, run, text, self.settings.objectives)
        if put_back and outcome.state == "FAIL":
            with self.queue.locked():
                self.queue.put_back(one.ticket.number)
                self._sync()
            log.info("trial %d waits: the same command continues it", one.ticket.number)
        else:
            self._end(one.ticket, outcome, run)

    def _end(self, ticket: Ticket, outcome: Outcome, run: Path | None) -> None:
        with self.queue.locked():
            ended = self.queue.end(ticket.number, outcome, run)
            best = self._sync()
        if not ended:
            return
        self._warn_if_unmeasured(ticket, outcome, run)
        self._warn_if_unknown(outcome)
        values = zip(self.settings.objectives, outcome.values or (), strict=False)
        shown = outcome.reason or ", ".join(f"{name} {value:.4g}" for name, value in values)
        numbers = ", ".join(str(trial.number) for trial in best) or "none yet"
        log.info("trial %d: %s, %s (best: %s)", ticket.number, outcome.state, shown, numbers)

    def _warn_if_unmeasured(self, ticket: Ticket, outcome: Outcome, run: Path | None) -> None:
        """A pruner whose metric nobody measures would never prune, and nobody would know."""
        metric = self.settings.pruner.metric
        if self.settings.pruner.name == "none" or outcome.state != "COMPLETE" or run is None:
            return
        (trial,) = (t for t in self.queue.trials() if t.number == ticket.number)
        measured = run_curves(run)
        if trial.intermediate_values or not measured or metric in measured:
            return
        close = get_close_matches(metric or "", sorted(measured), n=3)
        log.warning(
            "hydra.sweeper.pruner.metric=%s was measured at no validation of trial %d, so nothing is pruned%s",
            metric,
            ticket.number,
            f"; did you mean {' or '.join(close)}?" if close else "",
        )

    def _warn_if_unknown(self, outcome: Outcome) -> None:
        """No trial satisfies a constraint on a metric that no run has."""
        if outcome.state != "COMPLETE":
            return
        for metric in {one.metric for one in self.constraints} - outcome.metrics.keys():
            close = get_close_matches(metric, list(outcome.metrics), n=3)
            log.warning(
                "hydra.sweeper.constraints: metrics.json has no %s, so no trial satisfies it%s",
                metric,
                f"; did you mean {' or '.join(close)}?" if close else "",
            )

    def _sync(self) -> list[Any]:
        return sync(self.folder, self.queue.trials(), self.settings, self.constraints)

    def _stop_all(self) -> None:
        """End what still runs; after a stop or an error its trials wait again."""
        if not self._running:
            return
        try:
            self._signal_all(signal.SIGTERM)
            end = time.monotonic() + KILL_AFTER_S
            while time.monotonic() < end and any(o.process.poll() is None for o in self._running):
                time.sleep(POLL_S)
        except Interrupted:
            log.warning(
                "a second signal: trials are killed, they go on from their last checkpoints"
            )
        self._signal_all(signal.SIGKILL)
        for one in list(self._running):
            one.process.wait()
            self._finish(one, put_back=True)

    def _signal_all(self, signum: int) -> None:
        for one in self._running:
            if one.process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(one.process.pid, signum)

    def _summary(self, best: list[Any]) -> list[Any]:
        """Say how the study stands. Raises: RunFailed if too many trials failed."""
        states = [trial.state.name for trial in self.queue.trials()]
        counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
        log.info("sweep: %s; %s", counts, self.folder)
        if self.queue.gave_up():
            failures = self.queue.failures()
            reason = failures[-1].user_attrs.get("reason")
            raise RunFailed(
                f"{len(failures)} of {self.queue.n_trials} trials failed, more than"
                f" hydra.sweeper.max_failure_rate={self.settings.max_failure_rate:g}; the last one: {reason}"
            )
        if not best:
            log.warning("sweep: no trial is complete and satisfies the constraints")
        return best
