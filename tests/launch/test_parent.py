"""Processes of a stage: started, watched, stopped, and reported in one line."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_lightning.errors import Interrupted, Pruned, RunFailed, UserError
from rlhf_lightning.launch import parent
from rlhf_lightning.launch.orders import Orders
from rlhf_lightning.launch.parent import Ranks, in_processes
from rlhf_lightning.launch.rank import require_devices
from rlhf_lightning.runs import Stop

FAKE = Path(__file__).parent / "fake_rank.py"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent, "COMMAND", (sys.executable, str(FAKE)))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def run(
    folder: Path, does: str, *, stop: Stop | None = None, watch: Callable[[], None] | None = None
) -> dict[str, float]:
    """Two processes that do what `0=...,1=...` says."""
    orders = Orders("ppo", 1, str(folder), does, 0, {}, False, 0.0, {})
    return in_processes(
        orders,
        "task: ppo\n",
        Ranks(2),
        folder=folder / "processes",
        stop=stop or Stop(),
        watch=watch or (lambda: None),
    )


def test_the_first_process_gives_the_metrics_and_nothing_is_left_behind(tmp_path: Path) -> None:
    assert run(tmp_path, "0=ends,1=ends") == {"rank": 0.0}
    assert not (tmp_path / "processes").exists()
    assert [(tmp_path / f"started-{rank}").read_text() for rank in (0, 1)] == ["2", "2"]


@pytest.mark.parametrize(
    ("does", "kind", "message"),
    [
        ("0=late,1=user", UserError, "ppo.x must be 1, got 2"),
        ("0=late,1=failed", RunFailed, "ppo: iteration 3: the loss is nan"),
        ("0=pruned,1=pruned", Pruned, "the KL is 50"),
        ("0=late,1=killed", RunFailed, "process 2 of 2 was ended by SIGKILL"),
        ("0=late,1=breaks", RunFailed, "process 2 of 2: KeyError: 'oops'"),
        ("0=ends,1=silent", RunFailed, "1 of 2 processes ended without a word"),
    ],
)
def test_the_first_to_fail_says_why_and_not_those_who_lost_their_peer(
    tmp_path: Path, does: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as error:
        run(tmp_path, does)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_process_that_waits_for_a_dead_one_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parent, "GRACE_S", 0.2)
    with pytest.raises(RunFailed, match=r"process 1 of 2 was ended by SIGKILL"):
        run(tmp_path, "0=killed,1=waits")  # returns though the second would sleep for a minute


def test_a_signal_is_passed_on_to_all_and_comes_back_as_an_interruption(tmp_path: Path) -> None:
    stop = Stop()

    def ask() -> None:
        while not all((tmp_path / f"ready-{rank}").exists() for rank in (0, 1)):
            time.sleep(0.02)
        stop.handle(signal.SIGUSR1)

    threading.Thread(target=ask).start()
    with pytest.raises(Interrupted) as error:
        run(tmp_path, "0=stops,1=stops", stop=stop)
    assert error.value.signum == signal.SIGUSR1


def test_a_run_that_is_lost_ends_its_processes(tmp_path: Path) -> None:
    def lost() -> None:
        if all((tmp_path / f"started-{rank}").exists() for rank in (0, 1)):
            raise RunFailed("another process owns this run now")

    with pytest.raises(RunFailed, match="another process owns"):
        run(tmp_path, "0=waits,1=waits", watch=lost)


def test_several_nodes_need_a_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match=r"trainer.num_nodes must be 1 outside of a SLURM job"):
        parent.start(tmp_path, Ranks(1, nodes=2), tmp_path)


def test_threads_are_shared_out_unless_the_user_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, str]] = []
    monkeypatch.setattr(parent.subprocess, "Popen", lambda command, env, **kwargs: seen.append(env))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(12)))
    parent.start(tmp_path, Ranks(4), tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    parent.start(tmp_path, Ranks(4), tmp_path)
    assert [env["OMP_NUM_THREADS"] for env in seen] == ["3"] * 4 + ["5"] * 4


def test_ranks_on_several_nodes_get_their_share_of_the_cores_and_no_mask_of_the_step_that_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(
        parent.subprocess, "Popen", lambda command, env, **kwargs: seen.append((command, env))
    )
    monkeypatch.setattr(parent, "_first_host", lambda nodes: "node1")
    monkeypatch.setattr(parent, "_pass_on", lambda process, errors: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    given = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_CPUS_ON_NODE": "12"}
    given |= {"SLURM_CPU_BIND": "mask_cpu:0x1", "SLURM_CPU_BIND_LIST": "0x1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    parent.start(tmp_path, Ranks(4, nodes=2), tmp_path)
    ((command, env),) = seen
    assert "--cpus-per-task=3" in command and env["OMP_NUM_THREADS"] == "3"
    assert not [name for name in env if name.startswith("SLURM_CPU_BIND")]
    assert "--distribution=block" in command and parent.MEETING not in env
    assert env["MASTER_PORT"] == "12007"  # below what Linux gives to anybody's connections
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    with pytest.raises(UserError, match=r"^trainer.num_nodes must be <= 1, .* SLURM job, got 2$"):
        parent.start(tmp_path, Ranks(4, nodes=2), tmp_path)


def test_a_port_that_somebody_has_is_passed_over_on_the_host_that_listens() -> None:
    own = socket.gethostname()
    with socket.socket() as taken:
        port = parent._free_port(own, 7)
        taken.bind(("", port))
        assert port < parent._free_port(own, 7) < port + 100
    assert parent._free_port("elsewhere", 7) == 12007


def test_what_srun_says_was_wrong_is_in_the_message(tmp_path: Path) -> None:
    says = "echo 'a bar' >&2; printf 'srun: error: node2: task 1: Killed' >&2; exit 143"
    process = subprocess.Popen(["sh", "-c", says], stderr=subprocess.PIPE)
    one = parent.Started([0, 1], process, srun=True)
    parent._pass_on(process, one.errors)
    process.wait()
    with pytest.raises(RunFailed) as error:
        parent._result(tmp_path, [one], Ranks(1, nodes=2), Stop())
    said = r"srun: error: node2: task 1: Killed; exit codes \[143\]"
    assert re.search(rf"^2 of 2 processes ended without a word \({said}", str(error.value))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([("cuda", 2, 0), ("cpu", 0, 1)], "trainer.accelerator must find CUDA devices in all processes or in none, got none in process 2 of 2"),
        ([("cuda", 2, 0), ("cuda", 2, 1), ("cuda", 2, 2)], "trainer.devices must be <= 2, the CUDA devices of a node, got 3"),
    ],
)  # fmt: skip
def test_processes_that_would_wait_for_each_other_say_what_they_lack(
    found: list[tuple[str, int, int]], message: str
) -> None:
    with pytest.raises(UserError) as error:
        require_devices(found)
    assert str(error.value).startswith(message)
    require_devices([("cpu", 0, 0), ("cpu", 0, 1)])
    require_devices([("cuda", 2, 0), ("cuda", 2, 1), ("cuda", 2, 0)])
