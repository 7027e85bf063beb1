"""A killed run, started again by the same command, ends in the same weights to the bit."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest

from tests.harness import only, rlhf_here, start, wait_for

PPO = [
    "task=ppo",
    "ppo.iterations=9",
    "ppo.checkpoint_every=2",
    "ppo.eval_every=3",
    "ppo.adaptive_kl.enabled=true",
    "ppo.normalize_scores=true",
    "ppo.ema_decay=0.9",
    "ppo.ptx.coef=0.5",
    "ppo.reference_refresh_every=4",
]


def rows(run: Path) -> int:
    """Iterations that metrics.csv has seen."""
    path = run / "metrics.csv"
    if not path.exists():
        return 0
    steps = [line.split(",")[0] for line in path.read_text().splitlines()[1:]]
    return max((int(step) for step in steps if step.isdigit()), default=0)


def weights(run: Path) -> bytes:
    return (run / "artifact" / "model.safetensors").read_bytes()


def finished(process) -> None:
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, out + err


def test_ppo_killed_at_three_moments_ends_in_the_same_weights(
    pipeline_outputs: Path, tmp_path: Path
) -> None:
    command = [f"outputs={pipeline_outputs}", *PPO]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    reference = start(tmp_path, *command, f"run_dir={straight}")
    finished(reference)
    # before the first checkpoint, between two checkpoints, and just after one
    for seen in (1, 3, 7):
        process = start(tmp_path, *command, f"run_dir={broken}")
        wait_for(lambda seen=seen: rows(broken) >= seen, process)
        process.kill()
        process.communicate()
        assert not (broken / "artifact").exists()
    finished(start(tmp_path, *command, f"run_dir={broken}"))
    # at least after the second kill and after the third
    assert (broken / "log.txt").read_text().count("goes on from") >= 2
    assert weights(broken) == weights(straight)
    metrics = [
        json.loads((run / "metrics.json").read_text())["metrics"] for run in (straight, broken)
    ]
    for found in metrics:
        found.pop("time/ppo_s")
    assert metrics[0] == metrics[1]
    strip = [(run / "samples.jsonl").read_text().splitlines() for run in (straight, broken)]
    assert strip[0] == strip[1]


SIGNALLED = {
    "sft": ["sft.examples=640", "sft.checkpoint_every=100"],
    "ppo": ["ppo.iterations=9", "ppo.checkpoint_every=100", "ppo.eval_every=100"],
}


@pytest.mark.parametrize("task", ["sft", "ppo"])
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_checkpoints_first_and_the_same_command_goes_on(
    pipeline_outputs: Path, tmp_path: Path, signum: signal.Signals, code: int, task: str,
    began_with: list[str | None],
) -> None:  # fmt: skip
    command = [f"outputs={pipeline_outputs}", f"task={task}", *SIGNALLED[task]]
    run = tmp_path / "run"
    process = start(tmp_path, *command, f"run_dir={run}")
    wait_for(lambda: rows(run) >= 3, process)
    process.send_signal(signum)
    out, err = process.communicate(timeout=100)
    assert process.returncode == code, out + err
    assert json.loads((run / "metrics.json").read_text())["status"] == "interrupted"
    assert (run / "checkpoints" / "last.ckpt").is_file()  # though checkpoint_every is out of reach
    assert not (run / "artifact").exists()
    rlhf_here(*command, f"run_dir={run}")
    straight = tmp_path / "straight"
    rlhf_here(*command, f"run_dir={straight}")
    assert began_with == ["last.ckpt", None]
    assert weights(run) == weights(straight)


@pytest.mark.parametrize("task", ["pretrain", "reward"])
def test_the_other_stages_resume_to_the_bit_too(
    pipeline_outputs: Path, tmp_path: Path, task: str, began_with: list[str | None]
) -> None:
    sizes = {
        "pretrain": ["pretrain.examples=640"],
        "reward": ["reward.prompts=64", "reward.eval_every=3"],
    }
    command = [f"outputs={pipeline_outputs}", f"task={task}", *sizes[task]]
    run, straight = tmp_path / "run", tmp_path / "straight"
    process = start(tmp_path, *command, f"run_dir={run}")
    wait_for(lambda: rows(run) >= 4, process)
    process.kill()
    process.communicate()
    assert not (run / "artifact").exists()
    time.sleep(0.1)
    rlhf_here(*command, f"run_dir={run}")
    rlhf_here(*command, f"run_dir={straight}")
    assert began_with == ["last.ckpt", None]
    assert weights(run) == weights(straight)


def test_a_policy_that_breaks_stops_ppo_keeps_the_checkpoint_and_says_where(
    pipeline_outputs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    # one step an iteration: the first leaves weights of 1e30, the second iteration's loss is not a number
    broken = ["ppo.optimizer.lr=1e30", "ppo.epochs=1", "ppo.minibatch_size=16"]
    command = [f"outputs={pipeline_outputs}", "task=ppo", *broken, "ppo.checkpoint_every=1"]
    process = start(tmp_path, *command, f"run_dir={run}")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 1, out + err
    line = r"ppo: iteration 1: the loss is (nan|inf); the last good checkpoint is kept"
    assert re.fullmatch(f"error: {line}", err.splitlines()[-1]) and "Traceback" not in err
    found = json.loads((run / "metrics.json").read_text())
    assert found["status"] == "failed" and re.fullmatch(line, found["reason"])
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert not (run / "artifact").exists()


def pipeline_metrics(outputs: Path) -> dict[str, float]:
    """Of the one pipeline there, without what a clock says."""
    found = json.loads((only(outputs / "pipeline") / "metrics.json").read_text())
    assert found["status"] == "finished"
    return {name: v for name, v in found["metrics"].items() if not name.startswith("time/")}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_whole_pipeline_killed_at_three_moments_ends_in_the_same_metrics(
    pipeline_outputs: Path, tmp_path: Path
) -> None:
    outputs = tmp_path / "outputs"

    def training(task: str) -> bool:
        runs = list((outputs / task).glob("*")) if (outputs / task).is_dir() else []
        return any(rows(run) >= 1 for run in runs)

    # while SFT trains, while the reward model does, and while PPO does
    for task in ("sft", "reward", "ppo"):
        process = start(tmp_path)
        wait_for(lambda task=task: training(task), process, timeout=600)
        process.kill()
        process.communicate()
        run = only(outputs / task)
        assert json.loads((run / "metrics.json").read_text())["status"] == "running"
    finished(start(tmp_path))
    assert pipeline_metrics(outputs) == pipeline_metrics(pipeline_outputs)
