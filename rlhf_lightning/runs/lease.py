"""Who owns a run: one process at a time, also over NFS, and nobody who has died.

The lock is `flufl.lock`'s (a hard link, whose file time is the moment when it expires; a thread
renews it). Beside it lies `owner.json` for readers. A lock is taken over when it has expired, or at
once when its process is known to be dead: on this machine, in this process namespace, or an earlier
go of the same SLURM job, wherever that ran.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
from flufl.lock import AlreadyLockedError, Lock, LockState, NotLockedError, TimeOutError

from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.batch_job import batch_job
from rlhf_lightning.runs.files import read_json, remove_empty, write_json
from rlhf_lightning.runs.signals import Stop

LIFETIME_S = 60.0
HEARTBEAT_S = 15.0
REMIND_S = 60.0
POLL_S = 0.5

# its "errors" are our ordinary "somebody else has it"
logging.getLogger("flufl.lock").setLevel(logging.CRITICAL + 1)


def machine_id() -> str:
    """Equal for two processes that see each other: same boot, same process namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def is_alive(pid: int, started: float) -> bool:
    """Whether the process that began at `started` (`start_of`) still runs; a zombie does not."""
    try:
        # a number is used again some day
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and start_of(pid) == started
    except psutil.AccessDenied:
        return True
    except (psutil.NoSuchProcess, OSError):
        return _is_hidden(pid)


def start_of(pid: int) -> float:
    """When a process began, in a unit that no clock that is set can change: ticks since boot on Linux.

    Raises: NoSuchProcess or OSError where there is none.
    """
    if sys.platform != "linux":
        return psutil.Process(pid).create_time()
    # behind the name, which may hold anything, in brackets
    return float(
        Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]
    )


def _is_hidden(pid: int) -> bool:
    """Whether there is a process that /proc does not show to other users (hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def _randomness_of_its_own() -> Iterator[None]:
    # flufl.lock draws from `random`: that must neither shift an experiment's numbers nor repeat
    # under its seed
    state = random.getstate()
    random.seed()
    try:
        yield
    finally:
        random.setstate(state)


def is_held(folder: Path) -> bool:
    """Whether a living owner has the lease in this folder."""
    lock = folder / "lock"
    return lock.exists() and not Lease(folder).owner_is_gone()


class Lease:
    """Ownership of one folder's run.

    `acquire`, then `release`; `lost` is set if others had to take it over.
    """

    def __init__(
        self, folder: Path, *, lifetime_s: float = LIFETIME_S, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        self.folder = folder
        self.lost = threading.Event()
        self._heartbeat_s = heartbeat_s
        self._lifetime = timedelta(seconds=lifetime_s)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._file = folder / "lock"
        with _randomness_of_its_own():
            self._lock = Lock(str(self._file), lifetime=self._lifetime)

    def acquire(
        self,
        *,
        wait: bool = True,
        say: Callable[[str], None],
        key: str = "run_dir",
        stop: Stop | None = None,
    ) -> None:
        """Take the lease; wait while a living process has it.

        Says for whom it waits: at once, then every minute.

        Raises: UserError naming the owner if `wait` is off; Interrupted if `stop` asks for it.
        """
        said = -REMIND_S
        while not self._try():
            if self._take_over():
                continue
            if not wait:
                raise UserError(f"{key} must be free, got {self._who()}")
            if time.monotonic() - said >= REMIND_S:
                said = time.monotonic()
                say(f"waiting for {self._who()}")
            if stop is not None:
                stop.check()
            time.sleep(POLL_S)
        self._write_owner()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the lease up; nothing happens to one that was lost."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with suppress(NotLockedError, OSError):
            if self._lock.is_locked:  # else the name that lies there is another owner's
                (self.folder / "owner.json").unlink(missing_ok=True)
            self._lock.unlock()
        remove_empty([self.folder])

    def is_held(self) -> bool:
        """Whether the lock is still this owner's: who slept too long has lost it, and its thread may sleep on."""
        if self.lost.is_set():
            return False
        try:
            claim = self._file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        except OSError:  # a file system that hiccups
            return True
        return Path(claim).name == Path(self._lock.claimfile).name

    def owner_is_gone(self) -> bool:
        """Whether the lock there has expired, or its process is known to be dead."""
        try:
            claim = self._file.read_text(encoding="utf-8")
            # flufl.lock keeps the expiry as the file's time; a sixth is for clocks that differ between hosts
            grace = self._lifetime.total_seconds() / 6
            expired = self._file.stat().st_mtime + grace < time.time()
            # it writes it by way of local time: in the hour that clocks repeat, either may be an hour off
            local = self._lock.expiration + timedelta(seconds=grace)
            expired = expired and local < datetime.now()  # noqa: DTZ005
        except OSError:
            return False
        if expired:
            return True
        owner = read_json(self.folder / "owner.json")
        if owner.get("claim") == Path(claim).name:
            job = batch_job()
            if job is not None and job.follows(owner):
                return True
            same_machine = owner.get("machine") == machine_id()
            began = owner.get("process_start")
            return same_machine and began is not None and not is_alive(owner["pid"], began)
        try:  # it died before it wrote its name
            return self._lock.state is LockState.stale and not _is_hidden(self._lock.details[1])
        except (NotLockedError, OSError):  # somebody has removed it meanwhile
            return False

    def _try(self) -> bool:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.lock(timeout=-1)  # once: its own waiting breaks only what has expired
        except TimeOutError:
            return False
        except FileNotFoundError:  # an owner that leaves is removing the folder at this moment
            return False
        except AlreadyLockedError:  # NFS told of a failure that was none
            pass
        return True

    def _take_over(self) -> bool:
        """Remove the lock of an owner that is gone.

        Judging and removing are one step, under a lock of their own: two that judge at the same
        time would otherwise remove each other's new lock.
        """
        if not self.owner_is_gone():
            return False
        with _randomness_of_its_own():
            guard = Lock(str(self.folder / "takeover"), lifetime=5, default_timeout=3)
            try:
                with guard:
                    gone = self.owner_is_gone()
                    if gone:
                        claim = Path(self._file.read_text(encoding="utf-8")).name
                        self._file.unlink()
                        (self.folder / claim).unlink(missing_ok=True)
                    return gone
            except (TimeOutError, NotLockedError, FileNotFoundError):
                return False

    def _write_owner(self) -> None:
        job = batch_job()
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job_id": job.id if job else None,
            "job_restarts": job.restarts if job else None,
            "job_cluster": job.cluster if job else None,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "heartbeat_s": self._heartbeat_s,
            "lifetime_s": self._lifetime.total_seconds(),
            "machine": machine_id(),
            "process_start": start_of(os.getpid()),
            "claim": Path(self._lock.claimfile).name,
        }
        write_json(self.folder / "owner.json", owner)

    def _who(self) -> str:
        owner = read_json(self.folder / "owner.json")
        job = f", job {owner['job_id']}" if owner.get("job_id") else ""
        return (
            f"{str(self.folder.parent)!r}, owned by process {owner.get('pid', '?')} on"
            f" {owner.get('host', '?')}{job} since {owner.get('since', '?')}"
        )

    def _beat(self) -> None:
        while not self._ended.wait(self._heartbeat_s):
            try:
                self._lock.refresh()
            except NotLockedError:
                self.lost.set()
                return
            except OSError:  # a file system that hiccups: the lifetime covers some beats
                continue
