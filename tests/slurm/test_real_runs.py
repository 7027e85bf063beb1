"""The real command on a real cluster: what is disturbed ends in the weights of what is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT, only, rlhf, rlhf_here
from tests.slurm.conftest import Cluster
from tests.slurm.jobs_here import (
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
from tests.test_resume import rows, weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

LONGER = ["sft.examples=1600", "sft.checkpoint_every=10"]  # 50 steps
SMALL = [
    *("gpus_per_node=0", "cpus_per_task=1", "mem_gb=1", "time_min=20", "signal_before_s=30"),
]


def metrics(run: Path) -> dict[str, float]:
    found = json.loads((run / "metrics.json").read_text())
    assert found["status"] == "finished"
    return {name: v for name, v in found["metrics"].items() if not name.startswith("time/")}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing disturbs, outside of SLURM."""
    outputs = tmp_path_factory.mktemp("straight")
    rlhf_here(*SFT[1:], *LONGER, f"outputs={outputs}")
    return only(outputs / "sft")


@pytest.fixture(autouse=True)
def our_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_run_that_is_preempted_requeued_and_loses_its_node_ends_in_the_same_weights(
    cluster: Cluster, straight: Path, tmp_path: Path
) -> None:
    folder = submitted(tmp_path, *LONGER, command=None, mem_gb=1, time_min=60)
    job = folder.job_id
    assert job is not None
    run = tmp_path / "sft" / straight.name

    until(lambda: rows(run) >= 3, "three steps", 900)
    slurm("scancel", "--signal=USR1", job)
    until_said(folder, "back into the queue, restart 1 of 20")
    # no other step than the 10th is due: the signal has written this checkpoint
    until_said(folder, "goes on from")

    seen = rows(run)
    until(lambda: rows(run) >= seen + 3, "three more", 900)
    slurm("scontrol", "requeue", job)
    until_said(folder, "goes on from", 2)

    until(lambda: rows(run) >= 25, "25 steps", 900)
    # frozen and unreachable, like a power cut; SLURM would give it up after a while
    node = node_of(folder)
    cluster.kill(node, "hang")
    slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        outcome = ended(folder)
    finally:
        cluster.revive(node)
    assert outcome.state == "finished" and outcome.restarts >= 3, text(folder)
    assert text(folder).count("goes on from") >= 3
    assert weights(run) == weights(straight)
    assert metrics(run) == metrics(straight)


def test_the_time_limit_puts_a_run_back_and_it_ends_in_the_same_weights(
    cluster: Cluster, straight: Path, tmp_path: Path
) -> None:
    longer = [
        "sft.examples=19200",
        "sft.checkpoint_every=1000",
    ]  # 600 steps: no checkpoint but the signal's
    rlhf_here(*SFT[1:], *longer, f"outputs={tmp_path / 'straight'}")
    reference = only(tmp_path / "straight" / "sft")
    folder = submitted(
        tmp_path, *longer, command=None, mem_gb=1, time_min=1, signal_before_s=15, max_requeues=60
    )
    outcome = ended(folder)
    assert outcome.state == "finished" and outcome.restarts >= 1, text(folder)
    assert weights(tmp_path / "sft" / reference.name) == weights(reference)


def test_a_pipeline_is_submitted_as_jobs_that_wait_for_each_other(
    cluster: Cluster, tmp_path: Path
) -> None:
    resources = [f"pipeline.slurm.{item}" for item in SMALL]
    command = ["pipeline.launch=slurm", *resources, "pipeline.slurm.stages.ppo.time_min=30"]
    first = rlhf(tmp_path, *command, timeout=900)
    assert first.returncode == 0, first.stderr
    lines = [line.split() for line in first.stdout.splitlines()]
    assert [line[0] for line in lines] == [
        "pretrain",
        "sft",
        "reward",
        "ppo",
        "evaluate",
        "pipeline",
    ]
    ids = [line[2] for line in lines]
    assert len(set(ids)) == 6 and all(line[1] == "job" for line in lines)
    # the same command again, while they wait: no job is submitted twice
    again = rlhf(tmp_path, *command, timeout=900)
    assert [line.split()[2] for line in again.stdout.splitlines()] == ids, again.stderr
    until(lambda: state_of(ids[-1]) not in ("PENDING", "RUNNING", "COMPLETING"), "the end", 2000)
    assert [state_of(job) for job in ids] == ["COMPLETED"] * 6
    run = only(tmp_path / "outputs" / "pipeline")
    assert (
        metrics(run) and (run / "report.html").is_file() and (run / "round-1" / "ppo").is_symlink()
    )
    after = rlhf(tmp_path, *command, timeout=900)
    assert {line.split()[1] for line in after.stdout.splitlines()} == {"finished"}


def test_the_batch_script_runs_a_command_and_outlives_a_preemption(
    cluster: Cluster, straight: Path, tmp_path: Path
) -> None:
    script = ROOT / "docs" / "slurm" / "rlhf.sbatch"
    options = ["--gpus-per-node=0", "--cpus-per-task=1", "--mem=1G", "--time=20"]
    arguments = [*SFT, *LONGER, f"outputs={tmp_path}"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sbatch", "--parsable", *options, f"--output={tmp_path}/log.txt", str(script), *arguments],
        env=environment, capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    job = done.stdout.strip()
    run = tmp_path / "sft" / straight.name
    until(lambda: rows(run) >= 3, "three steps", 900)
    slurm("scancel", "--signal=USR1", job)
    until(lambda: state_of(job) in ("COMPLETED", "FAILED", "CANCELLED"), "the end", 1200)
    log = (tmp_path / "log.txt").read_text()
    assert state_of(job) == "COMPLETED", log
    assert "back into the queue, restart 1 of 20" in log and "goes on from" in log
    assert weights(run) == weights(straight)


def test_ppo_on_two_nodes_survives_the_loss_of_one(
    cluster: Cluster, pipeline_outputs: Path, tmp_path: Path
) -> None:
    parents = {
        role: only(pipeline_outputs / stage) / "artifact"
        for role, stage in (("policy", "sft"), ("reward", "reward"))
    }
    ppo = ["task=ppo", "ppo.iterations=40", "ppo.checkpoint_every=1", "strategy=ddp"]
    ppo += ["trainer.accelerator=cpu", "sft.init.policy=null"]
    ppo += [f"ppo.init.{role}={path}" for role, path in parents.items()]
    # what two processes on one machine make, without SLURM
    undisturbed = tmp_path / "undisturbed"
    rlhf_here(*ppo, "trainer.devices=2", f"outputs={undisturbed}")
    disturbed = tmp_path / "disturbed"
    folder = submitted(
        disturbed, *ppo, "trainer.devices=1", "trainer.num_nodes=2", command=None, mem_gb=2, nodes=2, time_min=60,
    )  # fmt: skip
    until(
        lambda: (disturbed / "ppo").is_dir() and rows(only(disturbed / "ppo")) >= 5,
        "five iterations",
    )
    # the node only: set down alone it would be back at once, and refuse the job that it still has
    cluster.kill(cluster.nodes[1], "hang")
    slurm("scontrol", "update", f"nodename={cluster.nodes[1]}", "state=down", "reason=test")
    try:
        # the job waits for two nodes
        until(lambda: state_of(str(folder.job_id)) == "PENDING", "its way back into the queue")
    finally:
        cluster.revive(cluster.nodes[1])
    outcome = ended(folder)
    assert outcome.state == "finished" and outcome.restarts >= 1, text(folder)
    assert "goes on from" in text(folder)
    found = metrics(only(disturbed / "ppo"))
    assert found == pytest.approx(metrics(only(undisturbed / "ppo")), abs=1e-4)
