"""The ways in which a command ends without its result, each with its exit code."""

from __future__ import annotations

import signal


class UserError(ValueError):
    """Something the user can mend: one line that names the key or file, what was got, what is allowed.

    Exit code 2, no traceback.
    """


class RunFailed(RuntimeError):
    """A run began and could not go on (a loss that is not finite, a broken ratio). Exit code 1.

    The run keeps its last good checkpoint and is marked `failed`.
    """


class Pruned(RuntimeError):
    """A sweep gave this run up, with the reason. No error: exit code 0, and the run's status is `pruned`."""


class Interrupted(RuntimeError):
    """A signal ended the run after its checkpoint was written. Exit code 128 + signal number."""

    def __init__(self, signum: int, then: str = "the same command continues") -> None:
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name}; {then}")
