from __future__ import annotations

import json
import os
import random
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest

from rlhf_lightning.errors import Interrupted, UserError
from rlhf_lightning.runs.files import read_json
from rlhf_lightning.runs.lease import Lease, is_held, start_of
from rlhf_lightning.runs.signals import Stop

OWNER = """
from rlhf_lightning.runs.lease import Lease
lease = Lease(Path(sys.argv[1]), lifetime_s=float(sys.argv[2]), heartbeat_s=0.1)
lease.acquire(say=say)
print("owned", flush=True)
while not lease.lost.wait(0.01):
    pass
print("lost", flush=True)
lease.release()
"""


def own(spawn, folder: Path, lifetime_s: float = 60.0):
    process = spawn(OWNER, folder, lifetime_s)
    assert process.stdout.readline() == "owned\n"
    return process


def test_the_owner_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    lease = Lease(tmp_path / ".lease")
    lease.acquire(say=print)
    owner = read_json(tmp_path / ".lease" / "owner.json")
    assert (owner["host"], owner["pid"], owner["job_id"]) == (
        socket.gethostname(),
        os.getpid(),
        "77",
    )
    assert is_held(tmp_path / ".lease")
    lease.release()
    assert not is_held(tmp_path / ".lease")
    assert not (tmp_path / ".lease").exists()


def test_who_may_not_wait_is_told_the_owner(tmp_path: Path, spawn):
    process = own(spawn, tmp_path / ".lease")
    with pytest.raises(UserError) as caught:
        Lease(tmp_path / ".lease").acquire(wait=False, say=print, key="run_dir")
    assert str(caught.value).startswith(f"run_dir must be free, got '{tmp_path}', owned by process")
    assert f"process {process.pid} on {socket.gethostname()} since 20" in str(caught.value)


def test_a_killed_owner_is_replaced_at_once(tmp_path: Path, spawn):
    process = own(spawn, tmp_path / ".lease")
    process.kill()  # and not waited for: a zombie is as dead
    time.sleep(0.1)
    assert not is_held(tmp_path / ".lease")
    began = time.monotonic()
    lease = Lease(tmp_path / ".lease")
    lease.acquire(say=pytest.fail)
    assert time.monotonic() - began < 1
    lease.release()


def test_a_silent_owner_elsewhere_is_replaced_when_its_lease_has_run_out(tmp_path: Path, spawn):
    process = own(spawn, tmp_path / ".lease", lifetime_s=1.5)
    owner = json.loads((tmp_path / ".lease" / "owner.json").read_text())
    elsewhere = owner | {"machine": "elsewhere", "host": "node7", "job_id": "12"}
    (tmp_path / ".lease" / "owner.json").write_text(json.dumps(elsewhere))
    process.kill()
    process.wait()
    said: list[str] = []
    lease = Lease(tmp_path / ".lease", lifetime_s=1.5, heartbeat_s=0.1)
    lease.acquire(say=said.append)
    lease.release()
    assert len(said) == 1
    assert "on node7, job 12 since" in said[0]


def test_an_owner_that_slept_too_long_learns_that_it_lost(tmp_path: Path, spawn):
    process = own(spawn, tmp_path / ".lease", lifetime_s=1.0)
    process.send_signal(signal.SIGSTOP)
    lease = Lease(tmp_path / ".lease", lifetime_s=1.0, heartbeat_s=0.1)
    lease.acquire(say=lambda text: None)
    process.send_signal(signal.SIGCONT)
    assert process.stdout.readline() == "lost\n"
    process.wait()
    assert read_json(tmp_path / ".lease" / "owner.json")["pid"] == os.getpid()
    lease.release()


def test_the_heartbeat_outlasts_the_lifetime(tmp_path: Path, spawn):
    own(spawn, tmp_path / ".lease", lifetime_s=1.0)
    # whoever looks grants another sixth of what it thinks is the owner's lifetime
    time.sleep(1.6)
    assert not Lease(tmp_path / ".lease", lifetime_s=1.0).owner_is_gone()


def test_a_signal_ends_the_waiting(tmp_path: Path, spawn):
    own(spawn, tmp_path / ".lease")
    stop = Stop()
    with pytest.raises(Interrupted):
        Lease(tmp_path / ".lease").acquire(say=lambda text: stop.handle(signal.SIGTERM), stop=stop)


def test_a_lease_draws_nothing_from_the_global_random_numbers(tmp_path: Path):
    random.seed(0)
    expected = random.random()
    random.seed(0)
    lease = Lease(tmp_path / ".lease")
    lease.acquire(say=print)
    lease.release()
    assert random.random() == expected


def test_an_owner_whose_thread_slept_too_sees_that_another_one_has_the_lock(tmp_path: Path):
    """A machine that was suspended: nobody has set `lost` yet."""
    mine = Lease(tmp_path / ".lease", heartbeat_s=1000)
    mine.acquire(say=print)
    assert mine.is_held()
    lock = tmp_path / ".lease" / "lock"
    theirs = lock.read_text().replace(str(os.getpid()), "1")
    lock.unlink()
    lock.write_text(theirs)
    assert not mine.lost.is_set()
    assert not mine.is_held()
    lock.unlink()
    assert not mine.is_held()
    mine.release()


def test_a_lock_that_goes_while_it_is_looked_at_has_no_dead_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of several that find a dead owner one takes its lock away while the others judge."""
    lease = Lease(tmp_path / ".lease")
    lease.acquire(say=print)
    (tmp_path / ".lease" / "owner.json").unlink()

    def gone(self: object) -> object:
        raise FileNotFoundError

    monkeypatch.setattr(type(lease._lock), "state", property(gone))
    assert not lease.owner_is_gone()
    monkeypatch.undo()
    lease.release()


def test_a_living_owner_is_neither_dead_by_a_clock_that_is_set_nor_by_being_hidden(
    tmp_path: Path, spawn, monkeypatch: pytest.MonkeyPatch
):
    """Wall-clock starts move when a clock is set; with hidepid /proc does not show other users' processes."""
    process = own(spawn, tmp_path / ".lease")
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: time.time())
    assert is_held(tmp_path / ".lease")

    def hidden(pid: int) -> psutil.Process:
        raise psutil.NoSuchProcess(pid)

    def others(pid: int, signum: int) -> None:
        assert (pid, signum) == (process.pid, 0)
        raise PermissionError

    monkeypatch.setattr(psutil, "Process", hidden)
    monkeypatch.setattr(os, "kill", others)
    assert is_held(tmp_path / ".lease")
    monkeypatch.undo()
    assert start_of(process.pid) != start_of(os.getpid())
