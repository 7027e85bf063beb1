"""The experiments on what people said: each is planned, and each runs through all of its stages."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rlhf_lightning.compose import check, compose
from rlhf_lightning.offline_model import NAME, cached
from rlhf_lightning.pipeline import run_task
from tests.harness import only

DATA = Path(os.environ.get("RLHF_DATA") or Path(__file__).parents[2] / "shared" / "data")
NAMES = ("oasst_smollm2", "qa_feedback_smollm2", "scitldr_smollm2", "sentiment_gpt")


def run(name: str, outputs: Path, *overrides: str) -> dict[str, float]:
    given = [f"experiment={name}", f"mix.root={DATA}", f"outputs={outputs}", *overrides]
    return run_task(check(compose(given)), overrides=given)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    if not DATA.is_dir():
        pytest.skip(f"no data at {DATA} (set RLHF_DATA)")
    if "smollm2" in request.param and not (cached(NAME) / "config.json").is_file():
        pytest.skip("no converted model: make offline-model")
    return request.param


def test_an_experiment_is_planned_to_its_last_stage(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(name, tmp_path, "dry_run=true")
    stages = [line.split()[0] for line in capsys.readouterr().out.splitlines() if " new " in line]
    first = ["pretrain", "sft"] if name == "sentiment_gpt" else ["sft", "reward"]
    assert stages == [*first, "ppo", "evaluate"]


@pytest.mark.slow
def test_an_experiment_runs_through_all_of_its_stages(name: str, tmp_path: Path) -> None:
    """With one iteration of PPO on few prompts."""
    few = ["sft.examples=16", "sft.epochs=1", "sft.eval_examples=4", "ppo.eval_prompts=8"]
    few += ["ppo.iterations=1", "ppo.episodes_per_iteration=16", "evaluate.prompts=8"]
    if name == "sentiment_gpt":
        few += ["pretrain.examples=16", "pretrain.epochs=1", "ppo.minibatch_size=16"]
    else:
        few += ["reward.prompts=12", "reward.eval_prompts=6"]
    metrics = run(name, tmp_path, *few)
    assert abs(metrics["ppo/kl_k1"]) < 10
    assert 0 < metrics["ppo/distinct_2"] <= 1
    told = json.loads((only(tmp_path / "pipeline") / "metrics.json").read_text())
    assert told["status"] == "finished"
    assert (only(tmp_path / "pipeline") / "report.html").exists()
