"""Jobs on a real cluster, disturbed in every way: claims, signals, exit codes and the queue are real, the training is not."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from rlhf_lightning.slurm.cluster import job_facts
from tests.harness import rlhf, rlhf_here
from tests.slurm.conftest import Cluster
from tests.slurm.fake_rlhf import run_of, straight
from tests.slurm.jobs_here import (
    FAKE,
    SFT,
    ended,
    node_of,
    slurm,
    state_of,
    submitted,
    text,
    until,
    until_said,
)

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(autouse=True)
def our_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))


def weights(outputs: Path, seed: int = 0) -> str:
    return (run_of(outputs, seed) / "artifact" / "weights").read_text()


def test_four_jobs_run_and_the_one_that_fails_shows_its_own_error(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_BAD_SEEDS", "2")
    monkeypatch.setenv("FAKE_STEPS", "5")
    command = ["-m", "hydra/launcher=slurm_cpu", *SFT, "seed=0,1,2,3"]
    command += [f"hydra.launcher.command=[{','.join(FAKE)}]", "hydra.launcher.cpus_per_task=1"]
    command += ["hydra.launcher.mem_gb=0.2", "hydra.launcher.time_min=10"]
    done = rlhf(tmp_path, *command, timeout=600)
    assert done.returncode == 1, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if "seed=2" in line]
    assert "seed=2: step 1: the loss is nan (job " in error and "log.txt)" in error
    assert done.stderr.splitlines()[-1] == "error: 1 of 4 jobs failed"
    log = Path(error.rpartition("log ")[2].removesuffix(")"))
    assert "the loss is nan" in log.read_text()
    for seed in (0, 1, 3):
        # five steps from the seed's number
        assert weights(tmp_path / "outputs", seed) == straight(seed, 5)
    array = error.partition("(job ")[2].partition("_")[0]
    states = [state_of(f"{array}_{seed}") for seed in range(4)]
    assert states == ["COMPLETED", "COMPLETED", "FAILED", "COMPLETED"]


def test_a_warning_and_a_requeue_lose_no_step(cluster: Cluster, tmp_path: Path) -> None:
    warned, requeued = submitted(tmp_path, "seed=1"), submitted(tmp_path, "seed=2")
    assert warned.job_id is not None and requeued.job_id is not None
    until_said(warned, "checkpoint of step 10")
    slurm("scancel", "--signal=USR1", warned.job_id)
    until_said(requeued, "checkpoint of step 20")
    slurm("scontrol", "requeue", requeued.job_id)
    outcomes = [ended(folder) for folder in (warned, requeued)]
    assert [(o.state, o.restarts) for o in outcomes] == [("finished", 1), ("finished", 1)]
    for seed, folder in ((1, warned), (2, requeued)):
        # it began twice, the second time behind a checkpoint
        begins = [line.split()[3] for line in text(folder).splitlines() if "begins" in line]
        assert len(begins) == 2 and begins[0] == "0" and int(begins[1]) >= 10, text(folder)
        assert weights(tmp_path, seed) == straight(seed)
        assert "waiting for" not in text(folder)  # its own lease was free at once
    # the signal itself has made a checkpoint: none was due at this step
    (begin,) = [line.split()[3] for line in text(warned).splitlines() if "begins" in line][1:]
    assert int(begin) > 10 and "restart 1 of 20" in text(warned)


def test_a_cancelled_job_stays_cancelled_and_the_limit_of_goes_holds(
    cluster: Cluster, tmp_path: Path
) -> None:
    cancelled, last = submitted(tmp_path, "seed=3"), submitted(tmp_path, "seed=4", max_requeues=0)
    assert cancelled.job_id is not None and last.job_id is not None
    until_said(cancelled, "checkpoint of step 10")
    slurm("scancel", cancelled.job_id)
    until_said(last, "checkpoint of step 10")
    slurm("scancel", "--signal=USR1", last.job_id)
    outcome = ended(cancelled)
    assert outcome.state == "stopped" and "SIGTERM" in (outcome.reason or "")
    until(lambda: state_of(str(cancelled.job_id)) == "CANCELLED", "cancelled")
    outcome = ended(last)
    assert outcome.state == "failed"
    reason = "started again 0 times, max_requeues=0 allows no more; the same command continues"
    assert outcome.reason == reason
    until(lambda: state_of(str(last.job_id)) == "FAILED", "failed")
    # and so it does: a new job goes on where the last one stopped
    folder = submitted(tmp_path, "seed=4", max_requeues=0)
    assert ended(folder).state == "finished" and weights(tmp_path, 4) == straight(4)


def submit_chain(outputs: Path, capsys: pytest.CaptureFixture[str], seed: int) -> list[list[str]]:
    """The words of each line that `pipeline.launch=slurm` prints."""
    settings = ["gpus_per_node=0", "cpus_per_task=1", "mem_gb=0.2", "time_min=10"]
    settings += [f"command=[{','.join(FAKE)}]", "stages.ppo.time_min=7"]
    settings += ["stages.pretrain.extra={hold: true}"]  # until the test has looked
    given = [f"pipeline.slurm.{item}" for item in (*settings, "signal_before_s=30")]
    rlhf_here(f"outputs={outputs}", f"seed={seed}", "pipeline.launch=slurm", *given)
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_stages_wait_for_their_parents_and_fall_with_them(
    cluster: Cluster,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE_STEPS", "20")
    monkeypatch.setenv("FAKE_BAD_SEEDS", "8")
    lines = submit_chain(tmp_path, capsys, seed=7)
    names = ["pretrain", "sft", "reward", "ppo", "evaluate", "pipeline"]
    assert [line[0] for line in lines] == names
    ids = dict(zip(names, [line[2] for line in lines], strict=True))
    after = {line[0]: [word.strip(",") for word in line[5:]] for line in lines}
    assert after["sft"] == [ids["pretrain"]] and after["reward"] == [ids["sft"]]
    assert after["ppo"] == [ids["sft"], ids["reward"]]
    assert after["pipeline"] == [ids[name] for name in names[:-1]]
    assert job_facts(ids["ppo"])["TimeLimit"] == "00:07:00"
    assert job_facts(ids["sft"])["TimeLimit"] == "00:10:00"
    # while they are in the queue the same command submits nothing
    again = submit_chain(tmp_path, capsys, seed=7)
    assert [line[2] for line in again] == list(ids.values())
    bad = {line[0]: line[2] for line in submit_chain(tmp_path, capsys, seed=8)}
    slurm("scontrol", "release", f"{ids['pretrain']},{bad['pretrain']}")
    until(lambda: state_of(bad["pipeline"]) == "CANCELLED", "the last one falls")
    assert state_of(bad["pretrain"]) == "FAILED" and state_of(bad["ppo"]) == "CANCELLED"
    until(lambda: state_of(ids["pipeline"]) == "COMPLETED", "the last one ends")
    ends = [job_facts(ids[name])["EndTime"] for name in names]
    assert ends == sorted(ends)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hang", "daemon"])
def test_a_node_that_dies_loses_the_steps_since_the_checkpoint_and_nothing_else(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("FAKE_STEPS", "300")
    if how == "hang":  # it must not end before its node does
        monkeypatch.setenv("FAKE_WAITS_AT", "25")
    folder = submitted(tmp_path, "seed=5")
    until_said(folder, "checkpoint of step 20")
    node = node_of(folder)
    try:
        # hang: everything stands still. daemon: SLURM loses sight of a go that lives on beside the next one
        cluster.kill(node, how)
        slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        outcome = ended(folder)
    finally:
        cluster.revive(node)
    assert outcome.state == "finished" and outcome.restarts == 1, text(folder)
    assert weights(tmp_path, 5) == straight(5, 300)
    # frozen, the old process still has a lease that is young, on a machine where it is still to be seen
    assert "waiting for" not in text(folder)


@pytest.mark.slow
def test_the_time_limit_puts_a_job_back(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_STEPS", "900")  # 90 s and more
    folder = submitted(tmp_path, "seed=6", time_min=1, signal_before_s=15)
    outcome = ended(folder)
    assert outcome.state == "finished" and outcome.restarts >= 1, text(folder)
    assert weights(tmp_path, 6) == straight(6, 900)
