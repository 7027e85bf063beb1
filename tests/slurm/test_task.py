"""What a job does when its command has ended: SLURM's own commands are played by a script."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.batch_job import BatchJob, batch_job
from rlhf_lightning.runs.lease import Lease
from rlhf_lightning.runs.signals import graceful_signals
from rlhf_lightning.slurm import cluster, waiting
from rlhf_lightning.slurm.cluster import Standing
from rlhf_lightning.slurm.folder import JobFolder, Outcome, job_folder
from rlhf_lightning.slurm.waiting import wait_for
from tests.harness import ROOT


def test_a_preempted_job_goes_back_and_at_once_where_it_has_no_grace() -> None:
    assert Standing("COMPLETING", "None", 0, preempted=True).wants_requeue(0)
    assert not Standing("COMPLETING", "None", 1, preempted=True).wants_requeue(0)
    assert Standing("COMPLETING", "None", 0, preempted=True).will_be_killed
    assert not Standing("RUNNING", "None", 0, preempted=True).will_be_killed
    assert not Standing("COMPLETING", "None", 0).will_be_killed


def test_preemption_is_read_from_what_slurm_says_of_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = "JobId=7 JobState=COMPLETING Reason=None Restarts=0 EndTime=2026-11-23T15:00:30 PreemptTime={}"
    # hours before its end it was only suspended for a while
    times = {"None": False, "2026-11-23T10:00:00": False, "2026-11-23T15:00:00": True}
    for time_, expected in times.items():
        monkeypatch.setattr(cluster, "_ask", lambda command, t=time_: said.format(t))
        assert cluster.standing("7").preempted is expected


@pytest.mark.parametrize(
    ("state", "reason", "restarts", "again"),
    [
        ("RUNNING", "None", 0, True),  # warned before the time limit, or preempted with some grace
        ("SIGNALING", "None", 0, True),  # ... and so quick that the warning is still under way
        ("COMPLETING", "TimeLimit", 0, True),  # the checkpoint took longer than the warning
        ("COMPLETING", "None", 0, False),  # scancel
        ("COMPLETING", "None", 1, False),  # scontrol requeue: SLURM is at it already
        ("PENDING", "BeginTime", 1, False),
    ],
)
def test_only_a_job_that_nobody_else_ended_asks_for_another_go(
    state: str, reason: str, restarts: int, again: bool
) -> None:
    assert Standing(state, reason, restarts).wants_requeue(0) is again


SCONTROL = """#!/bin/sh
echo "$@" >> {folder}/asked
[ "$1" = show ] && echo "JobId=7 JobState={state} Reason={reason} Restarts={restarts}"
[ "$1" = requeue ] && kill -9 $PPID  # as SLURM ends what a job still runs
exit 0
"""
WAITS = "import signal, time; signal.signal(signal.SIGUSR1, lambda *a: exit(138)); print('up', flush=True); time.sleep(60)"


DEAF = """
import os, signal, time
for signum in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(signum, signal.SIG_IGN)
job = os.getppid()
print('up', flush=True)
while os.getppid() == job:
    time.sleep(0.1)
"""
"""In the middle of a long step: it does not look whether it is to stop."""


def job(
    folder: Path,
    code: str,
    *,
    state: str = "RUNNING",
    reason: str = "None",
    program: str = sys.executable,
    **environment: str,
) -> subprocess.Popen[bytes]:
    """A job whose command is some Python."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "scontrol").write_text(
        SCONTROL.format(folder=folder, state=state, reason=reason, restarts=0)
    )
    (tools / "scontrol").chmod(0o755)
    command = [program, "-c", code]
    JobFolder(folder).prepare("", name="test", max_requeues=2, command=command)
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    env |= {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", **environment}
    runs = f"from rlhf_lightning.slurm.task import run_folder; run_folder({str(folder)!r})"
    return subprocess.Popen([sys.executable, "-c", runs], env=env)


def outcome(folder: Path) -> tuple[str, int, str | None]:
    found = JobFolder(folder).outcome()
    assert found is not None
    return found.state, found.returncode, found.reason


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('fine')", ("finished", 0, None)),
        ("print('error: sft.x must be 1'); exit(2)", ("failed", 2, "sft.x must be 1")),
        ("import os; os.kill(os.getpid(), 9)", ("failed", -9, "killed by SIGKILL")),
    ],
)
def test_a_job_ends_as_its_command_ends(
    tmp_path: Path, code: str, expected: tuple[str, int, str | None]
) -> None:
    process = job(tmp_path, code)
    # a shell's code for a signal
    assert process.wait(timeout=100) == (137 if expected[1] < 0 else expected[1])
    state, returncode, reason = outcome(tmp_path)
    assert (state, returncode) == expected[:2]
    assert (reason or "").startswith(expected[2] or "")
    assert not (tmp_path / "asked").exists()


def until_up(folder: Path) -> None:
    log, end = folder / "log.txt", time.monotonic() + 100
    while "up" not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("state", "restarts", "ends", "asked"),
    [
        ("RUNNING", "0", "requeued", ["show job --oneliner 7", "requeue 7"]),
        ("COMPLETING", "0", "stopped", ["show job --oneliner 7"]),
        ("RUNNING", "2", "failed", ["show job --oneliner 7"]),  # of two allowed
    ],
)
def test_a_job_that_is_warned_asks_for_another_go_where_it_may(
    tmp_path: Path, state: str, restarts: str, ends: str, asked: list[str]
) -> None:
    process = job(tmp_path, WAITS, state=state, SLURM_RESTART_COUNT=restarts)
    until_up(tmp_path)
    process.send_signal(signal.SIGUSR1)
    process.wait(timeout=100)
    # Restarts of 2 in this go, and 0 as the script says it, are no sign of another one
    assert outcome(tmp_path)[0] == ends
    assert (tmp_path / "asked").read_text().splitlines() == asked


def test_a_step_that_is_longer_than_the_warning_costs_the_step_and_not_the_job(
    tmp_path: Path,
) -> None:
    process = job(tmp_path, DEAF, state="COMPLETING", reason="TimeLimit")
    until_up(tmp_path)
    process.send_signal(signal.SIGUSR1)  # the warning: nobody asks for anything yet
    time.sleep(1)
    assert not (tmp_path / "asked").exists()
    process.send_signal(signal.SIGTERM)  # the limit
    process.wait(timeout=100)
    assert outcome(tmp_path)[0] == "requeued"
    assert (tmp_path / "asked").read_text().splitlines() == ["show job --oneliner 7", "requeue 7"]


def test_at_the_limit_of_its_last_go_a_job_that_is_deaf_leaves_the_reason(tmp_path: Path) -> None:
    process = job(
        tmp_path, DEAF, state="COMPLETING", reason="TimeLimit", SLURM_RESTART_COUNT="2"
    )  # of two allowed
    until_up(tmp_path)
    process.send_signal(signal.SIGTERM)
    end = time.monotonic() + 100
    while JobFolder(tmp_path).outcome() is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    process.kill()  # as SLURM does after a while; its command sees that and ends
    process.wait(timeout=100)
    assert outcome(tmp_path)[0] == "failed"
    assert (tmp_path / "asked").read_text().splitlines() == ["show job --oneliner 7"]


def test_a_command_that_cannot_be_started_says_so(tmp_path: Path) -> None:
    process = job(tmp_path, "", program="apptainer-that-is-not-here")
    assert process.wait(timeout=100) == 127
    reason = "apptainer-that-is-not-here cannot be started: No such file or directory"
    assert outcome(tmp_path) == ("failed", 127, reason)
    assert reason in (tmp_path / "log.txt").read_text()


def test_a_job_that_came_back_too_often_does_not_begin(tmp_path: Path) -> None:
    process = job(tmp_path, "print('fine')", SLURM_RESTART_COUNT="3")
    assert process.wait(timeout=100) == 1
    reason = "started again 3 times, max_requeues=2 allows no more; the same command continues"
    assert outcome(tmp_path) == ("failed", 1, reason)


def test_the_ranks_are_not_sruns_to_start(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "rlhf_lightning.slurm", "task=sft"],
        env={**os.environ, "SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert process.returncode == 2
    line = "error: srun must start one of this, which starts the ranks itself: --ntasks must be 1, got 8"
    assert process.stderr.splitlines() == [line]


def test_an_array_task_is_named_so_that_the_others_are_left_alone() -> None:
    found = batch_job(
        {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    )
    assert found is not None and found.name == "12_3" and found.restarts == 0
    assert batch_job({}) is None


def test_a_job_that_is_started_again_takes_its_own_lease_over_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def set_job(job_id: str, restarts: int) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", job_id)
        monkeypatch.setenv("SLURM_CLUSTER_NAME", "here")
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))

    set_job("7", 0)
    first = Lease(tmp_path / "lease", heartbeat_s=0.1)
    first.acquire(say=print)
    for other in (("7", 0), ("8", 1)):  # another step of the same go, another job
        set_job(*other)
        with pytest.raises(UserError, match="must be free"):
            Lease(tmp_path / "lease").acquire(wait=False, say=print)
    set_job("7", 1)
    second = Lease(tmp_path / "lease")
    second.acquire(wait=False, say=print)  # though this very process lives
    assert first.lost.wait(10)
    second.release()
    first.release()


def test_a_job_of_another_cluster_is_another_job() -> None:
    owner = {"job_id": "7", "job_cluster": "here", "job_restarts": 0}
    assert BatchJob("7", 1, "here").follows(owner)
    assert not BatchJob("7", 1, "there").follows(owner)
    assert not BatchJob("7", 0, "here").follows(owner)
    assert not BatchJob("7", 1, None).follows(
        {"job_id": "7", "job_cluster": None, "job_restarts": None}
    )


def test_a_scheduler_that_repeats_itself_does_not_cut_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr("rlhf_lightning.runs.signals.REPEAT_S", 0.0)
    with graceful_signals() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        assert stop.requested == signal.SIGTERM


def test_a_job_that_vanishes_is_failed_with_slurms_word_and_a_pause_is_forgiven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [JobFolder(tmp_path / name) for name in ("a", "b", "c")]
    for i, folder in enumerate(folders):
        folder.prepare("", name="x", max_requeues=0, command=None)
        folder.submitted(str(i))
    asked: list[int] = []

    def queued() -> dict[str, str]:
        asked.append(1)
        if len(asked) == 2:
            raise cluster.NoAnswer("squeue: no controller")
        if len(asked) == 4:  # the second leaves its word late
            folders[1].end(Outcome("finished", 0, None, None, None, 0, "t"))
        # the first is away for one question only, the third for good
        return {"0": "RUNNING", "1": "RUNNING", "2": "RUNNING"} if len(asked) == 1 else {}

    monkeypatch.setattr(waiting, "queued", queued)
    # squeue has not told all: SLURM still runs the third, the first time that it is asked for
    states = iter(["RUNNING"])
    monkeypatch.setattr(
        waiting,
        "final_state",
        lambda job: next(states, "NODE_FAIL") if job == "2" else None,
    )
    monkeypatch.setattr(waiting, "LOOK_S", 0.01)
    monkeypatch.setattr(waiting, "ASK_S", 0.01)
    monkeypatch.setattr(waiting, "DOUBT_S", 60.0)
    folders[0].end(Outcome("requeued", 138, None, None, None, 0, "t"))
    found = dict(wait_for(folders))
    assert found[1].state == "finished"
    assert found[2].reason == "the job is NODE_FAIL and left no word of its own"
    assert found[0].reason == "the job is gone from the queue and left no word of its own"


def test_a_job_that_only_the_accounting_calls_alive_is_waited_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(waiting, "queued", dict)
    monkeypatch.setattr(waiting, "final_state", lambda job: "RUNNING")
    queue = waiting._Queue({0: "7"}, clock=lambda: clock[0])
    for clock[0] in (0.0, 100.0, 500.0):
        queue.look([0])
        assert queue.lost(0) is None
    clock[0] = waiting.DOUBT_S + 1
    queue.look([0])
    lost = queue.lost(0)
    assert lost is not None and lost.reason == "the job is RUNNING and left no word of its own"


def test_a_go_that_slurm_lost_sight_of_does_not_speak_for_the_next(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    folder.prepare("", name="x", max_requeues=2, command=None)
    folder.begin("7", 1)
    folder.end(Outcome("failed", 1, "another process owns this run now", None, "7", 0, "t"))
    assert folder.outcome() is None
    folder.end(Outcome("finished", 0, None, None, "7", 1, "t"))
    found = folder.outcome()
    assert found is not None and found.state == "finished"
    # submitted again by hand: another job, which has not begun
    folder.prepare("", name="x", max_requeues=2, command=None)
    folder.end(Outcome("failed", 1, "another process owns this run now", None, "7", 1, "t"))
    assert folder.outcome() is None


def test_a_job_that_slurm_holds_back_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "7|PENDING|launch failed requeued held\n8_1|RUNNING|None\n9|PENDING|Resources\n"
    monkeypatch.setattr(cluster, "_ask", lambda command: said)
    expected = {"7": "PENDING (launch failed requeued held)", "8_1": "RUNNING", "9": "PENDING"}
    assert cluster.queued() == expected


def test_the_same_work_has_the_same_folder_and_other_work_another(tmp_path: Path) -> None:
    one, two = (job_folder(tmp_path, "sft of x", key).path for key in ("a", "b"))
    assert one == job_folder(tmp_path, "sft of x", "a").path and one != two
    assert one.parent == tmp_path / "slurm" and one.name.startswith("sft-of-x-")
