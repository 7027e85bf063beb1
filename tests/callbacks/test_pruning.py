"""A trial that trains reports to its study and ends where it is given up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from lightning.pytorch.trainer.states import TrainerFn

from rlhf_lightning.callbacks.pruning import Pruning, pruning
from rlhf_lightning.errors import Pruned
from rlhf_lightning.runs import Run, claim
from rlhf_lightning.runs.search import read_run
from rlhf_lightning.sweeps.child import FOLDER, TrialOrders
from rlhf_lightning.sweeps.settings import PrunerSettings, RuleSettings
from rlhf_lightning.sweeps.storage import open_storage, open_study

METRIC = "val/gold_score"


def trainer(
    *,
    training: bool = True,
    rank_zero: bool = True,
    last_batch: bool = False,
    should_stop: bool = False,
) -> Any:
    fn = TrainerFn.FITTING if training else TrainerFn.VALIDATING
    progress = SimpleNamespace(is_last_batch=last_batch)
    return SimpleNamespace(
        state=SimpleNamespace(fn=fn),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
        is_global_zero=rank_zero,
        should_stop=should_stop,
        num_training_batches=10,
        strategy=SimpleNamespace(broadcast=lambda value, src: value),
    )


def make_run(path: Path) -> Run:
    path.mkdir()
    return Run(path, task="ppo", name="x", seed=0, identity={})


def curve(run: Run, *values: float, metric: str = METRIC) -> None:
    rows = "".join(f"{step},{value}\n" for step, value in enumerate(values))
    run.metrics_csv.write_text(f"step,{metric}\n{rows}", encoding="utf-8")


def given(
    tmp_path: Path, pruner: PrunerSettings | None = None, rules: RuleSettings | None = None
) -> tuple[TrialOrders, Any]:
    """A study with two good trials at steps 0, 1, 2 and one that runs: that is ours."""
    study = open_study(open_storage(tmp_path, None), "s", ["maximize"])
    for _ in range(2):
        trial = study.ask()
        for step, value in enumerate((0.5, 0.6, 0.7)):
            trial.report(value, step)
        study.tell(trial, 0.7)
    trial = study.ask()
    orders = TrialOrders(
        tmp_path / "trial",
        tmp_path,
        "s",
        trial.number,
        ["maximize"],
        pruner or PrunerSettings(),
        rules or RuleSettings(),
    )
    return orders, study


MEDIAN = PrunerSettings("median", METRIC, args={"n_startup_trials": 1})


def test_a_trial_below_the_median_of_the_others_is_pruned(tmp_path: Path) -> None:
    orders, study = given(tmp_path, MEDIAN)
    run = make_run(tmp_path / "run")
    callback = Pruning(run, orders)
    curve(run, 0.55)
    callback.on_validation_end(trainer(), None)  # type: ignore[arg-type]
    # the median at step 1 is 0.6
    curve(run, 0.55, 0.58)
    with pytest.raises(Pruned, match=r"^median: val/gold_score is 0\.58 at step 1$"):
        callback.on_validation_end(trainer(), None)  # type: ignore[arg-type]
    assert study.trials[2].intermediate_values == {0: 0.55, 1: 0.58}


def test_a_trial_that_was_continued_reports_all_that_it_ever_measured(tmp_path: Path) -> None:
    orders, study = given(tmp_path, MEDIAN)
    run = make_run(tmp_path / "run")
    curve(run, 0.6, 0.7, 0.8)
    Pruning(run, orders).on_validation_end(trainer(), None)  # type: ignore[arg-type]
    assert study.trials[2].intermediate_values == {0: 0.6, 1: 0.7, 2: 0.8}


def test_rounds_follow_each_other_on_one_axis(tmp_path: Path) -> None:
    orders, study = given(tmp_path, MEDIAN)
    run = make_run(tmp_path / "run")
    curve(run, 0.9)
    # the second round begins after the first one's 10 iterations
    Pruning(run, orders, 2).on_validation_end(trainer(), None)  # type: ignore[arg-type]
    assert list(study.trials[2].intermediate_values) == [10]


def run_through(
    tmp_path: Path, study: Any, pruner: PrunerSettings, name: str, *values: float
) -> str | None:
    """A trial with these validations; why it was pruned."""
    trial = study.ask()
    direction = study.direction.name.lower()
    folder = tmp_path / f"trial-{name}"
    orders = TrialOrders(folder, tmp_path, "s", trial.number, [direction], pruner, RuleSettings())
    run = make_run(tmp_path / name)
    callback = Pruning(run, orders)
    try:
        for seen in range(1, len(values) + 1):
            curve(run, *values[:seen])
            callback.on_validation_end(trainer(), None)  # type: ignore[arg-type]
    except Pruned as error:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        return str(error)
    study.tell(trial, values[-1])
    return None


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("median", {"n_startup_trials": 1}),
        ("successive_halving", {"min_resource": 1, "reduction_factor": 2}),
        # three brackets, drawn from crc32("s_NUMBER"); number 9 is in the first one, as are 0 to 3, 6 and 7
        ("hyperband", {"min_resource": 1, "max_resource": 4, "reduction_factor": 2}),
    ],
)
def test_a_pruner_gives_up_the_worse_trial_and_none_of_the_equally_good(
    tmp_path: Path, name: str, args: dict[str, Any]
) -> None:
    study = open_study(open_storage(tmp_path, None), "s", ["maximize"])
    pruner = PrunerSettings(name, METRIC, args=args)
    good = [run_through(tmp_path, study, pruner, f"g{i}", *[0.5] * 6) for i in range(9)]
    assert good == [None] * 9
    reason = run_through(tmp_path, study, pruner, "bad", *[0.1] * 6)
    assert reason is not None
    assert reason.startswith(f"{name}: val/gold_score is 0.1 at step ")


def test_patience_gives_up_a_trial_that_no_longer_gets_better(tmp_path: Path) -> None:
    study = open_study(open_storage(tmp_path, None), "s", ["maximize"])
    pruner = PrunerSettings("patience", METRIC, args={"patience": 1})
    assert run_through(tmp_path, study, pruner, "rising", 0.1, 0.2, 0.3, 0.4) is None
    # the best of the last two, 0.4, is below the best before them, 0.6
    reason = run_through(tmp_path, study, pruner, "falling", 0.5, 0.6, 0.4, 0.3)
    assert reason == "patience: val/gold_score is 0.3 at step 3"


def test_a_metric_may_have_another_direction_than_the_objective(tmp_path: Path) -> None:
    study = open_study(open_storage(tmp_path, None), "s", ["minimize"])
    pruner = PrunerSettings("median", METRIC, "maximize", args={"n_startup_trials": 1})
    assert run_through(tmp_path, study, pruner, "first", 0.5, 0.6) is None
    assert run_through(tmp_path, study, pruner, "better", 0.7, 0.8) is None
    assert run_through(tmp_path, study, pruner, "worse", 0.3, 0.4) is not None
    assert study.trials[0].intermediate_values == {0: -0.5, 1: -0.6}


def test_a_rule_prunes_and_the_run_says_why(tmp_path: Path) -> None:
    orders, _ = given(tmp_path, rules=RuleSettings(kl_budget=10))
    claimed = claim(
        tmp_path / "run",
        task="ppo",
        name="x",
        seed=0,
        identity={},
        config_yaml="",
        overrides=[],
    )
    with pytest.raises(Pruned), claimed as run:
        curve(run, 0.0, 12.0, metric="val/kl_k1")
        Pruning(run, orders).on_validation_end(trainer(), None)  # type: ignore[arg-type]
    found = read_run(tmp_path / "run")
    assert found.status == "pruned"
    assert found.reason == "val/kl_k1 is 12, above rules.kl_budget=10"
    assert found.metrics["val/kl_k1"] == 12.0


def test_a_stage_around_a_pruned_one_is_pruned_too(tmp_path: Path) -> None:
    claimed = claim(
        tmp_path / "run",
        task="pipeline",
        name="x",
        seed=0,
        identity={},
        config_yaml="",
        overrides=[],
    )
    with pytest.raises(Pruned), claimed:
        raise Pruned("too much KL")
    assert (read_run(tmp_path / "run").status, read_run(tmp_path / "run").reason) == (
        "pruned",
        "too much KL",
    )


def test_nothing_is_pruned_outside_of_training(tmp_path: Path) -> None:
    orders, _ = given(tmp_path, rules=RuleSettings(kl_budget=10))
    run = make_run(tmp_path / "run")
    curve(run, 99.0, 99.0, metric="val/kl_k1")
    Pruning(run, orders).on_validation_end(trainer(training=False), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["last_batch", "should_stop"])
def test_a_run_that_has_taken_its_last_step_is_not_given_up(tmp_path: Path, how: str) -> None:
    orders, study = given(tmp_path, MEDIAN)
    run = make_run(tmp_path / "run")
    curve(run, 0.55, 0.58)
    Pruning(run, orders).on_validation_end(trainer(**{how: True}), None)  # type: ignore[arg-type]
    assert study.trials[2].intermediate_values == {0: 0.55, 1: 0.58}


def test_a_validation_that_is_not_a_number_prunes_nothing(tmp_path: Path) -> None:
    orders, _ = given(tmp_path, MEDIAN, RuleSettings(kl_budget=10))
    run = make_run(tmp_path / "run")
    curve(run, 0.55, float("nan"))
    Pruning(run, orders).on_validation_end(trainer(), None)  # type: ignore[arg-type]


def test_a_trial_that_the_sweep_took_for_lost_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    orders, study = given(tmp_path, MEDIAN)
    study.tell(2, state=optuna.trial.TrialState.FAIL)
    run = make_run(tmp_path / "run")
    callback = Pruning(run, orders)
    for values in ((0.1,), (0.1, 0.1)):
        curve(run, *values)
        callback.on_validation_end(trainer(), None)  # type: ignore[arg-type]
    assert caplog.text.count("no longer waits for trial 2") == 1


def test_a_run_that_is_no_trial_has_no_callback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    monkeypatch.delenv(FOLDER, raising=False)
    assert pruning(run, 1) == []
    quiet, _ = given(tmp_path)
    quiet.write()
    monkeypatch.setenv(FOLDER, str(quiet.folder))
    assert pruning(run, 1) == []  # a trial, but nothing may prune it
    strict = TrialOrders(
        quiet.folder, quiet.sweep, "s", 2, ["maximize"], MEDIAN, RuleSettings(kl_budget=1)
    )
    strict.write()
    (callback,) = pruning(run, 1)
    assert isinstance(callback, Pruning)
    assert callback.given == strict
