"""Which trial comes next, and who has it.

Optuna creates as many trials as it is asked for. So that several processes reach `n_trials` together and no further,
every step that counts trials or changes their state happens under one lock in the sweep's directory, which all of
them share. A trial belongs to a worker, a worker has a lease with a heartbeat: a trial whose worker has died is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import Interrupted, UserError
from rlhf_lightning.runs.lease import Lease, is_held
from rlhf_lightning.sweeps.child import announced, config_folder
from rlhf_lightning.sweeps.comparisons import Comparison
from rlhf_lightning.sweeps.outcome import COMPLETE, FAIL, Outcome, failed
from rlhf_lightning.sweeps.samplers import CONSTRAINED, METRICS, make_sampler
from rlhf_lightning.sweeps.settings import SweepSettings
from rlhf_lightning.sweeps.space import Space

WORKER, REASON, RUN, OVERRIDES = "worker", "reason", "run", "overrides"
RETRY_OF, ATTEMPT, HOPELESS = "retry_of", "attempt", "hopeless"

log = logging.getLogger("rlhf_lightning")


@dataclass(frozen=True)
class Ticket:
    """A trial that this worker has to run."""

    number: int
    params: dict[str, Any]
    overrides: list[str]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Alone among all commands that work in a sweep's directory."""
    lease = Lease(folder / ".lock")
    lease.acquire(say=log.warning, key="the sweep")
    try:
        yield
    finally:
        lease.release()


class Queue:
    """Hands out the trials of a study to this worker."""

    def __init__(
        self,
        study: Any,
        storage: Any,
        folder: Path,
        worker: str,
        settings: SweepSettings,
        space: Space,
        constraints: Sequence[Comparison],
    ) -> None:
        self.study, self.folder, self.worker = study, folder, worker
        self.settings, self.space, self.constraints = settings, space, constraints
        self._grid = space.grid(settings.sampler.seed) if settings.sampler.name == "grid" else None
        self.storage = storage
        self.study_id = storage.get_study_id_from_name(study.study_name)
        self.study.sampler = self._sampler(0)
        self._asked: dict[int, Any] = {}

    @property
    def n_trials(self) -> int:
        """How many trials the study has in the end, retries not counted."""
        if self._grid is None:
            assert self.settings.n_trials is not None
            return self.settings.n_trials
        return min(self.settings.n_trials or len(self._grid), len(self._grid))

    def trials(self) -> list[Any]:
        """All trials as they are in the storage now."""
        return self.study.get_trials(deepcopy=False)

    def locked(self) -> AbstractContextManager[None]:
        """Alone among all workers."""
        return alone(self.folder)

    def take(self) -> Ticket | None:
        """The next trial, now running and ours; None where all are handed out. Under `locked`.

        A trial that was put back comes first, then retries, then new ones.
        Raises: UserError where the custom function or a sampler is wrong.
        """
        self._fail_lost()
        self._enqueue_retries()
        trials = self.trials()
        waiting = [t for t in trials if t.state.name == "WAITING"]
        begun = sum(RETRY_OF not in t.user_attrs for t in trials)
        if not waiting and (begun >= self.n_trials or self.gave_up()):
            return None
        if not waiting and self._grid is not None:
            self.study.enqueue_trial(self._grid[begun])
        self.study.sampler = self._sampler(waiting[0].number if waiting else len(trials))
        trial = self.study.ask()
        # before anything that can fail: a trial without a worker counts as lost
        trial.set_user_attr(WORKER, self.worker)
        self._asked[trial.number] = trial
        try:
            overrides = self.space.overrides(trial)
        except Interrupted:
            self.put_back(trial.number)
            raise
        except Exception as error:
            reason = f"hydra.sweeper.custom_space raised {type(error).__name__}: {error}"
            self._end(trial.number, failed(reason, hopeless=True))
            raise UserError(reason) from error
        trial.set_user_attr(OVERRIDES, overrides)
        return Ticket(trial.number, dict(trial.params), overrides)

    def end(self, number: int, outcome: Outcome, run: Path | None) -> bool:
        """Write a trial's final state; False if others took it for lost meanwhile. Under `locked`."""
        if not self._ours(number):
            log.warning("trial %d was taken for lost by another process", number)
            return False
        if run is not None:
            self._attribute(number, RUN, str(run))
        self._end(number, outcome)
        return True

    def put_back(self, number: int) -> None:
        """An interrupted trial waits again: whoever takes it goes on from its checkpoint. Under `locked`."""
        from optuna.trial import TrialState

        if self._ours(number):
            self._attribute(number, WORKER, None)
            self.storage.set_trial_state_values(self._id(number), TrialState.WAITING)

    def unfinished(self) -> list[int]:
        """Numbers of the trials that run or wait, whoever has them."""
        return [t.number for t in self.trials() if not t.state.is_finished()]

    def failures(self) -> list[Any]:
        """Trials that failed and were not run again since."""
        trials = self.trials()
        again = {
            (t.user_attrs[RETRY_OF], t.user_attrs[ATTEMPT])
            for t in trials
            if RETRY_OF in t.user_attrs
        }
        return [t for t in trials if t.state.name == FAIL and _next_attempt(t) not in again]

    def gave_up(self) -> bool:
        """Whether more trials failed than max_failure_rate allows."""
        return len(self.failures()) > self.settings.max_failure_rate * self.n_trials

    def _sampler(self, number: int) -> Any:
        return make_sampler(self.settings.sampler, number)

    def _fail_lost(self) -> None:
        for trial in self.trials():
            worker = trial.user_attrs.get(WORKER)
            if worker == self.worker:
                continue
            if trial.state.name == "RUNNING" and not (worker and is_held(self.lease_of(worker))):
                run = announced(config_folder(self.folder, trial.number))
                if run is not None:
                    self._attribute(trial.number, RUN, str(run))
                self._end(trial.number, failed(f"lost: its sweep process {worker or '?'} has died"))

    def lease_of(self, worker: str) -> Path:
        """Where a worker's lease lies."""
        return self.folder / "workers" / worker

    def _enqueue_retries(self) -> None:
        for trial in self.failures():
            root, attempt = _next_attempt(trial)
            if attempt > self.settings.retry_failed or trial.user_attrs.get(HOPELESS):
                continue
            self.study.enqueue_trial(trial.params, user_attrs={RETRY_OF: root, ATTEMPT: attempt})

    def _end(self, number: int, outcome: Outcome) -> None:
        from optuna.trial import TrialState

        if outcome.reason:
            self._attribute(number, REASON, outcome.reason)
        if outcome.metrics:
            self._attribute(number, METRICS, outcome.metrics)
        # a pruned trial has no final metrics: what it would have violated is not known
        if outcome.state == COMPLETE and self.settings.sampler.name in CONSTRAINED:
            for constraint in self.constraints:
                violation = constraint.violation(outcome.metrics)
                self._asked[number].set_constraint(str(constraint), violation)
        if outcome.hopeless:
            self._attribute(number, HOPELESS, True)
        self.study.tell(number, outcome.values, TrialState[outcome.state])

    def _attribute(self, number: int, key: str, value: Any) -> None:
        self.storage.set_trial_user_attr(self._id(number), key, value)

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)

    def _ours(self, number: int) -> bool:
        trial = self.storage.get_trial(self._id(number))
        return trial.state.name == "RUNNING" and trial.user_attrs.get(WORKER) == self.worker


def _next_attempt(trial: Any) -> tuple[int, int]:
    """(trial that failed first, number of the retry that would follow this one)."""
    attributes = trial.user_attrs
    return attributes.get(RETRY_OF, trial.number), attributes.get(ATTEMPT, 0) + 1
