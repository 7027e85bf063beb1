"""Waiting for jobs: their own word where they left one, else SLURM's."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from rlhf_lightning.slurm.cluster import RUNS, NoAnswer, final_state, queued
from rlhf_lightning.slurm.folder import FAILED, REQUEUED, JobFolder, Outcome

LOOK_S = 1.0
"""Between looks for what the jobs have left."""
ASK_S = 5.0
"""Between questions to SLURM; it grows with the time that they wait, up to ten times."""
GONE_TWICE = 2
"""A job that is about to start again, or whose last word is on its way over NFS, is missing for a moment."""

DOUBT_S = 600.0
"""How long a job is waited for that the queue does not name and the accounting calls alive."""

log = logging.getLogger("rlhf_lightning")


def wait_for(folders: Sequence[JobFolder]) -> Iterator[tuple[int, Outcome]]:
    """Index and outcome of each job, in the order in which they end."""
    open_jobs = dict(enumerate(folders))
    watch = _Queue({i: folder.job_id or "?" for i, folder in open_jobs.items()})
    while open_jobs:
        watch.look(list(open_jobs))
        for i, folder in list(open_jobs.items()):
            outcome = final(folder) or watch.lost(i)
            if outcome is not None:
                del open_jobs[i]
                yield i, outcome
        if open_jobs:
            time.sleep(LOOK_S)


def final(folder: JobFolder) -> Outcome | None:
    """How a job ended, in its own words; None while it runs, or waits to go on."""
    outcome = folder.outcome()
    return None if outcome is None or outcome.state == REQUEUED else outcome


class _Queue:
    """The jobs as SLURM sees them."""

    def __init__(self, ids: dict[int, str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ids, self._clock = ids, clock
        self._began = clock()
        self._next = self._began
        self._missing = dict.fromkeys(ids, 0)
        self._gone = dict.fromkeys(ids, self._began)
        """When each was first missing."""
        self._states: dict[int, str] = {}

    def look(self, jobs: Sequence[int]) -> None:
        """Ask, if it is time to."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + min(10 * ASK_S, max(ASK_S, (now - self._began) / 20))
        try:
            there = queued()
        except NoAnswer as error:
            log.warning("slurm: %s; the jobs go on", error)
            return
        for i in jobs:
            state = there.get(self._ids[i])
            self._missing[i] = 0 if state else self._missing[i] + 1
            if self._missing[i] <= 1:
                self._gone[i] = now
            if state and state != self._states.get(i):
                held = "; `scontrol release` lets it go" if "held" in state.lower() else ""
                log.info("job %s: %s%s", self._ids[i], state.lower(), held)
                self._states[i] = state

    def lost(self, i: int) -> Outcome | None:
        """The outcome of a job that has left the queue without a word."""
        if self._missing[i] < GONE_TWICE:
            return None
        state = final_state(self._ids[i]) or "gone from the queue"
        alive = state in RUNS or state in ("PENDING", "COMPLETING", "REQUEUED")
        if alive and self._clock() - self._gone[i] < DOUBT_S:  # one of the two has not told all
            return None
        now = datetime.now(UTC).isoformat()
        job, reason = self._ids[i], f"the job is {state} and left no word of its own"
        return Outcome(FAILED, 1, reason, None, job, 0, now)
