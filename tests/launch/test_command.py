"""`rlhf strategy=... trainer.devices=2`: the command itself, with two processes of its own for each stage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from tests.harness import ROOT, only, rlhf, start, wait_for
from tests.sweeps.test_command import OPTUNA

TWO = ("trainer.devices=2", "trainer.accelerator=cpu")
STOPS = ("ppo.iterations=9", "ppo.checkpoint_every=2", "ppo.eval_every=100")


def furthest(a: Path, b: Path) -> float:
    """Between the weights of two runs' artifacts, which are the same ordinary folders."""
    one, other = (load_file(run / "artifact" / "model.safetensors") for run in (a, b))
    assert one.keys() == other.keys()
    assert {f.name for f in (a / "artifact").iterdir()} == {
        f.name for f in (b / "artifact").iterdir()
    }
    return max((one[name] - other[name]).abs().max().item() for name in one)


def parents(outputs: Path) -> list[str]:
    """What PPO starts from, whatever the number of processes."""
    sft, reward = only(outputs / "sft"), only(outputs / "reward")
    return ["task=ppo", f"ppo.init.policy={sft}", f"ppo.init.reward={reward}", "outputs=elsewhere"]


def iterations(run: Path) -> int:
    path = run / "metrics.csv"
    lines = path.read_text().splitlines()[1:] if path.exists() else []
    return max((int(line.split(",")[0]) for line in lines if line[:1].isdigit()), default=0)


def test_ddp_trains_what_one_process_trains(finished_pipeline: Path, tmp_path: Path) -> None:
    one, run = only(finished_pipeline / "ppo"), tmp_path / "run"
    done = rlhf(tmp_path, *parents(finished_pipeline), *TWO, "strategy=ddp", f"run_dir={run}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert furthest(run, one) < 1e-5  # eight optimizer steps
    found, expected = (json.loads((r / "metrics.json").read_text())["metrics"] for r in (run, one))
    found.pop("time/ppo_s")
    expected.pop("time/ppo_s")
    assert found == pytest.approx(expected, abs=1e-3)
    assert json.loads((run / "identity.json").read_text())["identity"]["world_size"] == 2
    assert not (run / ".processes").exists()  # nothing went wrong
    assert (run / "metrics.csv").read_text().count("\nstep") == 0  # one process writes
    again = rlhf(tmp_path, *parents(finished_pipeline), *TWO, "strategy=fsdp2", f"run_dir={run}")
    assert again.returncode == 0  # how weights are spread is no part of what a run is
    assert "finished already" in again.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["fsdp2", "deepspeed_zero2", "deepspeed_zero3"])
def test_a_whole_pipeline_with_spread_weights_is_that_of_one_process(
    name: str, finished_pipeline: Path, tmp_path: Path
) -> None:
    done = rlhf(tmp_path, f"strategy={name}", *TWO, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in ("pretrain", "sft", "reward", "ppo"):
        own, one = only(tmp_path / "outputs" / stage), only(finished_pipeline / stage)
        assert furthest(own, one) < 1e-3
    said = [
        (only(outputs / "evaluate") / "samples.jsonl").read_text().splitlines()
        for outputs in (tmp_path / "outputs", finished_pipeline)
    ]
    same = sum(
        json.loads(a)["response"] == json.loads(b)["response"] for a, b in zip(*said, strict=True)
    )
    assert same >= 0.9 * len(said[1])  # rounding may move a token across its probability


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_stops_all_processes_after_one_step_and_the_command_goes_on(
    signum: signal.Signals, finished_pipeline: Path, tmp_path: Path
) -> None:
    command = [*parents(finished_pipeline), *STOPS, *TWO, "strategy=ddp"]
    run, straight = tmp_path / "run", tmp_path / "straight"
    process = start(tmp_path, *command, f"run_dir={run}")
    wait_for(lambda: iterations(run) >= 3, process)
    process.send_signal(signum)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 128 + signum, out + err
    assert json.loads((run / "metrics.json").read_text())["status"] == "interrupted"
    for place in (run, straight):
        done = rlhf(tmp_path, *command, f"run_dir={place}")
        assert done.returncode == 0, done.stdout + done.stderr
    assert furthest(run, straight) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_that_is_killed_ends_the_command_in_one_line_and_it_goes_on_after(
    finished_pipeline: Path, tmp_path: Path
) -> None:
    command = [*parents(finished_pipeline), *STOPS, *TWO, "strategy=fsdp2"]
    run, straight = tmp_path / "run", tmp_path / "straight"
    process = start(tmp_path, *command, f"run_dir={run}")
    wait_for(lambda: iterations(run) >= 5, process)
    ranks = psutil.Process(process.pid).children()
    assert len(ranks) == 2
    ranks[1].kill()
    out, err = process.communicate(timeout=200)
    assert process.returncode == 1, out + err
    last = err.splitlines()[-1]
    assert last.startswith("error: process ") and "was ended by SIGKILL" in last
    assert not any(rank.is_running() for rank in ranks)
    for place in (run, straight):
        done = rlhf(tmp_path, *command, f"run_dir={place}")
        assert done.returncode == 0, done.stdout + done.stderr
    assert furthest(run, straight) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_processes_die_with_the_command(finished_pipeline: Path, tmp_path: Path) -> None:
    command = [*parents(finished_pipeline), *STOPS, *TWO, "strategy=ddp"]
    process = start(tmp_path, *command, f"run_dir={tmp_path / 'run'}")
    wait_for(lambda: iterations(tmp_path / "run") >= 1, process)
    ranks = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_trial_of_a_search_trains_two_processes_of_one_config(tmp_path: Path) -> None:
    settings = (
        "hydra.sweeper.objectives=[pretrain/val_loss]",
        "hydra.sweeper.directions=[minimize]",
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.sampler.name=grid",
    )
    space = ("task=pretrain", "pretrain.optimizer.lr=1e-2,1e-3", "strategy=ddp", *TWO)
    done = rlhf(tmp_path, *OPTUNA, *space, *settings, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = only(tmp_path / "outputs" / "sweeps")  # the second process began no search of its own
    records = [json.loads(f.read_text()) for f in sorted((sweep / "trials").glob("*.json"))]
    assert [record["state"] for record in records] == ["COMPLETE"] * 2
    assert len(list((tmp_path / "outputs" / "pretrain").iterdir())) == 2
    rates = set()
    for number in range(2):
        run = sweep / "trials" / f"{number:04d}"
        identity = json.loads((run / "identity.json").read_text())["identity"]
        assert identity["world_size"] == 2
        rates.add(identity["pretrain"]["optimizer"]["lr"])
    assert rates == {1e-2, 1e-3}
    again = subprocess.run(
        [
            sys.executable,
            "-m",
            "rlhf_lightning",
            "--config-dir",
            str(sweep),
            "--config-name",
            "best",
            "run_dir=again",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    best = min(record["values"]["pretrain/val_loss"] for record in records)
    repeated = json.loads((tmp_path / "again" / "metrics.json").read_text())["metrics"]
    assert repeated["pretrain/val_loss"] == best  # to the bit
