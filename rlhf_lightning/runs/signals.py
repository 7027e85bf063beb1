"""Signals that end a run in good order: noted at once, obeyed where a checkpoint can be written."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rlhf_lightning.errors import Interrupted
from rlhf_lightning.runs.batch_job import batch_job

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

REPEAT_S = 1.0
"""One stop often arrives twice within moments: for the process group, and forwarded by make, srun
or a shell."""


class Stop:
    """What the signals asked for so far."""

    def __init__(self) -> None:
        self.requested: int | None = None
        """The first signal, or None."""
        self._since = 0.0

    def check(self) -> None:
        """Raises: Interrupted if a signal asked for it. Call where nothing is lost by stopping."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    def handle(self, signum: int, _frame: FrameType | None = None) -> None:
        """Note the first signal; a second one raises Interrupted wherever the program is."""
        if self.requested is None:
            self.requested, self._since = signum, time.monotonic()
            return
        # a scheduler repeats itself (a warning, TERM as grace begins and as it ends): what it means
        # to cut short it kills
        if signum != signal.SIGINT and batch_job() is not None:
            return
        # SLURM warns by USR1 and sends TERM when time is up: the checkpoint between them must not
        # be cut
        warned = self.requested == signal.SIGUSR1 and signum == signal.SIGTERM
        if not warned and time.monotonic() - self._since > REPEAT_S:
            raise Interrupted(signum)


@contextmanager
def graceful_signals(stop: Stop | None = None) -> Iterator[Stop]:
    """Let SIGTERM, SIGUSR1 and SIGINT set `stop.requested` instead of ending the process.

    Handlers are those of the main thread; in another one the `Stop` is never set. The old ones come
    back at the end.
    """
    stop = stop or Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    old = {signum: signal.signal(signum, stop.handle) for signum in SIGNALS}
    try:
        yield stop
    finally:
        for signum, handler in old.items():
            # None: the old handler was not set from Python and cannot be put back
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
