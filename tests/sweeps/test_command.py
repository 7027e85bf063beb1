"""The command itself: `rlhf -m hydra/sweeper=optuna ...`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import rlhf
from tests.sweeps.searching import FAKE

OPTUNA = ("-m", "hydra/sweeper=optuna")


def saved(cwd: Path, sweep: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """`rlhf --config-dir SWEEP --config-name best ...`: nothing else is said of the config."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "rlhf_lightning",
            "--config-dir",
            str(sweep),
            "--config-name",
            "best",
            *args,
        ],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_the_plain_form_searches_and_its_best_config_is_one_that_rlhf_reads(tmp_path: Path) -> None:
    command = f"hydra.sweeper.command=[{','.join(FAKE)}]"
    space = ("ppo.kl_coef=tag(log,interval(0.005,0.2))", "model=nano,small", "seed=3")
    done = rlhf(tmp_path, *OPTUNA, *space, "hydra.sweeper.n_trials=2", command)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    records = [json.loads(f.read_text()) for f in sorted((sweep / "trials").glob("*.json"))]
    assert [record["state"] for record in records] == ["COMPLETE"] * 2
    assert set(records[0]["params"]) == {"ppo.kl_coef", "model"}
    best = max(records, key=lambda record: record["values"]["ppo/validation/gold_score"])
    shown = saved(tmp_path, sweep, "--cfg", "job", "-p", "ppo.kl_coef")
    assert shown.stdout.strip() == repr(best["params"]["ppo.kl_coef"]), shown.stderr


def test_what_is_searched_need_not_have_a_default(tmp_path: Path) -> None:
    space = ("model=hf", "model.path=/a,/b", "dry_run=true")
    first, again = (rlhf(tmp_path, *OPTUNA, *space) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert "CategoricalDistribution(choices=('/a', '/b'))" in first.stdout
    assert first.stdout == again.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model=hf", "seed=1,2"), "error: model.path must be a hub id or folder"),
        (("seed=3",), "error: a search must have something to search"),
        (("seed=1,2", "hydra.sweeper.n_trials=0"), "error: hydra.sweeper.n_trials must be"),
        (("seed=1,2", "hydra.sweeper.constraints=[a+b]"), "error: hydra.sweeper.constraints must"),
    ],
)
def test_a_bad_search_is_one_line_and_exit_code_2(
    tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    done = rlhf(tmp_path, *OPTUNA, *overrides)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_search_whose_every_trial_would_fail_is_refused_before_it_counts_one(
    tmp_path: Path,
) -> None:
    """A failed trial counts: the same command, with the parent there, would still have been over."""
    search = ("task=sft", "sft.optimizer.lr=1e-2,1e-3", "hydra.sweeper.n_trials=2")
    search += ("hydra.sweeper.objectives=[sft/val_loss]", "hydra.sweeper.directions=[minimize]")
    done = rlhf(tmp_path, *OPTUNA, *search)
    assert done.returncode == 2
    assert "task=sft needs the run of pretrain first" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_a_real_search_prunes_and_its_best_run_repeats_to_the_bit(tmp_path: Path) -> None:
    settings = (
        "hydra.sweeper.objectives=[pretrain/val_loss]",
        "hydra.sweeper.directions=[minimize]",
        "hydra.sweeper.sampler.name=grid",
        "hydra.sweeper.pruner.name=median",
        "hydra.sweeper.pruner.metric=pretrain/val/loss",
        "hydra.sweeper.pruner.args={n_startup_trials:1}",
        "hydra.sweeper.n_trials=3",
    )
    # seed 0 shuffles them to 1e-2, 1e-9, 1e-3: the one that does not learn has one to be compared with
    space = ("task=pretrain", "pretrain.optimizer.lr=1e-2,1e-3,1e-9")
    done = rlhf(tmp_path, *OPTUNA, *space, *settings)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    records = [json.loads(f.read_text()) for f in sorted((sweep / "trials").glob("*.json"))]
    by_lr = {record["params"]["pretrain.optimizer.lr"]: record for record in records}
    assert by_lr[1e-2]["state"] == "COMPLETE"
    assert by_lr[1e-9]["state"] == "PRUNED"
    assert by_lr[1e-9]["reason"].startswith("median: pretrain/val/loss is ")
    status = json.loads(
        (sweep / "trials" / f"{by_lr[1e-9]['number']:04d}" / "metrics.json").read_text()
    )
    assert status["status"] == "pruned"
    again = saved(tmp_path, sweep, "run_dir=again")
    assert again.returncode == 0, again.stderr
    repeated = json.loads((tmp_path / "again" / "metrics.json").read_text())["metrics"]
    best = min((r for r in records if r["values"]), key=lambda r: r["values"]["pretrain/val_loss"])
    assert repeated["pretrain/val_loss"] == best["values"]["pretrain/val_loss"]
