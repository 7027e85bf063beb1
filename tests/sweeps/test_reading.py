"""A sweep's directory is read as it is, whatever has happened in it, and shown on one page and on TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from rlhf_lightning.compose import check, compose
from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation.sweep_report import SweepReport, render
from rlhf_lightning.runs.files import write_json
from rlhf_lightning.sweeps.importance import importance
from rlhf_lightning.sweeps.reading import read_sweep
from rlhf_lightning.tasks import sweep_report
from rlhf_lightning.tasks.sweep_report import report_of
from tests.evaluation.test_report import Checker
from tests.sweeps.searching import run_search, start_search, starts, until


def report(tmp: Path) -> SweepReport:
    return report_of(read_sweep(tmp / "sweep"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_the_page_has_every_trial_with_its_state_reason_and_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE", "0001:prune 0002:raise")
    space = ["ppo.kl_coef=0.01,0.05,0.15,0.19"]
    constraints = ["ppo/validation/kl_k1 <= 100"]
    run_search(tmp_path, space, n_trials=4, sampler={"name": "grid"}, constraints=constraints)
    before = content(tmp_path / "sweep")
    overrides = ["task=sweep_report", f"sweep={tmp_path / 'sweep'}"]
    assert sweep_report.run(check(compose(overrides))) == {"sweep/trials": 4.0}
    after = content(tmp_path / "sweep")
    page = after.pop("report.html").decode()
    assert after == before, "the sweep itself is only read"

    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    links = {load for load in checker.loads if not load.startswith("#")}
    # the one that raised has a run too: what it measured until then can be looked at
    assert links == {f"trials/{number:04d}" for number in range(4)}
    assert all((tmp_path / "sweep" / link / "metrics.json").is_file() for link in links)
    for text in (
        "val/kl_k1 is 30, above",
        "ValueError: a bad number",
        "ppo/validation/kl_k1 &lt;= 100",
    ):
        assert text in page
    shown = capsys.readouterr().out
    assert "4 trials: 2 COMPLETE, 1 PRUNED, 1 FAIL" in shown
    (best,) = report(tmp_path).best
    assert f"best: trial {best.number}, ppo/validation/gold_score" in shown
    assert best.curves["val/gold_score"][0] == (0, pytest.approx(best.values[0] / 2))  # type: ignore[index]


def test_a_broken_constraint_is_shown_with_its_excess_and_is_never_the_best(tmp_path: Path) -> None:
    # kl_k1 = 1 / (0.01 + kl_coef): 16.67 at 0.05, which is 6.67 too much, and 6.25 at 0.15
    space, grid = ["ppo.kl_coef=0.05,0.15"], {"name": "grid"}
    run_search(
        tmp_path, space, n_trials=2, sampler=grid, constraints=["ppo/validation/kl_k1 <= 10"]
    )
    found = {row.params["ppo.kl_coef"]: row for row in report(tmp_path).trials}
    assert found[0.05].violations == {"ppo/validation/kl_k1 <= 10": pytest.approx(1 / 0.06 - 10)}
    assert (found[0.05].best, found[0.15].best) == (False, True)
    assert "broken by 6.667" in render(report(tmp_path))


def test_a_search_without_any_finished_trial_has_a_page(tmp_path: Path) -> None:
    process = start_search(tmp_path, {"FAKE_SECONDS": "600"}, n_trials=3, n_jobs=2)
    until(lambda: starts(tmp_path) == 2, process)
    running = report(tmp_path)
    assert [row.state for row in running.trials] == ["RUNNING"] * 2
    assert all(row.reason is None and row.links for row in running.trials)
    assert "No trial is complete yet" in render(running)
    process.kill()
    process.wait()
    reasons = {row.reason for row in report(tmp_path).trials}
    assert reasons == {"its sweep process has died: the same command goes on with the sweep"}


def test_a_sweep_that_was_killed_before_its_first_trial_has_a_page(tmp_path: Path) -> None:
    run_search(tmp_path, n_trials=1)
    for name in ("study.journal", "best.yaml", "trials/0000.json", "trials/0000"):
        (tmp_path / "sweep" / name).unlink()
    page = render(report(tmp_path))
    assert "No trial has been started yet." in page
    assert "too few trials: 0 complete, 5 are needed" in page


def test_several_objectives_have_their_front_on_the_page(tmp_path: Path) -> None:
    space = ["ppo.kl_coef=0.01,0.05,0.15"]
    several: dict[str, Any] = {
        "objectives": ["ppo/validation/gold_score", "ppo/validation/kl_k1"],
        "directions": ["maximize", "minimize"],
    }
    run_search(tmp_path, space, n_trials=3, sampler={"name": "grid"}, **several)
    found = report(tmp_path)
    assert {row.params["ppo.kl_coef"] for row in found.best} == {0.05, 0.15}
    assert "Pareto front" in render(found)


def conditional(trial: Any) -> dict[str, Any]:
    if trial.suggest_categorical("where", ["near", "far"]) == "near":
        return {"ppo.kl_coef": trial.suggest_float("near.kl_coef", 0.04, 0.06)}
    return {"ppo.kl_coef": 0.19}


def test_parameters_that_only_some_trials_have_are_shown_as_not_set(tmp_path: Path) -> None:
    run_search(tmp_path, ["seed=0"], n_trials=8, custom_space=f"{__name__}.conditional")
    found = report(tmp_path)
    assert {"near.kl_coef" in row.params for row in found.trials} == {True, False}
    assert "not set" in render(found)
    (said,) = found.importances
    assert set(said.shares) == {"where"}
    assert "left out, because some trials do not have it: near.kl_coef" in said.note


def test_a_study_in_a_database_is_read_from_its_records_without_the_address(tmp_path: Path) -> None:
    run_search(tmp_path, n_trials=5, storage=f"sqlite:///{tmp_path}/study.db")
    (tmp_path / "study.db").unlink()
    found = report(tmp_path)
    assert found.provenance["trials read from"] == "trials/*.json"
    assert [row.state for row in found.trials] == ["COMPLETE"] * 5
    assert found.log_params == {"ppo.kl_coef"}
    assert all(row.duration_s is not None and row.curves for row in found.trials)
    assert found.importances[0].shares == {"ppo.kl_coef": 1.0}


def test_the_parameter_that_matters_has_the_larger_share() -> None:
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(60):
        trial = study.ask()
        x, _ = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        study.tell(trial, (x - 0.3) ** 2)
    said = importance(study.trials, 0, "minimize")
    assert said.note == ""  # 60 trials for two parameters
    assert said.shares["x"] > 0.8 > said.shares["y"]
    assert sum(said.shares.values()) == pytest.approx(1)
    assert importance(study.trials[:12], 0, "minimize").note.startswith(
        "12 trials for 2 parameters"
    )
    assert importance(study.trials[:4], 0, "minimize").shares == {}


def hparams_data(events: EventAccumulator, tag: str) -> Any:
    content = events.SummaryMetadata(tag).plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(content)  # type: ignore[attr-defined]


def test_tensorboard_has_the_same_trials_as_hyperparameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "0001:raise")
    run_search(tmp_path, ["ppo.kl_coef=tag(log,interval(0.005,0.2))", "seed=3,4"], n_trials=3)
    folders = sorted((tmp_path / "sweep" / "tensorboard").iterdir())
    rows = report(tmp_path).trials
    assert [folder.name for folder in folders] == ["0000", "0001", "0002"]
    for folder, row in zip(folders, rows, strict=True):
        events = EventAccumulator(str(folder)).Reload()
        begun = hparams_data(events, metadata.SESSION_START_INFO_TAG).session_start_info
        hparams = {key: value.number_value for key, value in begun.hparams.items()}
        assert begun.hparams["state"].string_value == row.state
        assert {key: hparams[key] for key in row.params} == row.params
        status = hparams_data(events, metadata.SESSION_END_INFO_TAG).session_end_info.status
        assert status == (1 if row.state == "COMPLETE" else 2)  # success, failure
        tags = events.Tags()["scalars"]
        assert tags == (["ppo/validation/gold_score"] if row.state == "COMPLETE" else [])
        if row.values:
            (point,) = events.Scalars("ppo/validation/gold_score")
            assert point.value == pytest.approx(row.values[0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=sweep_report"], "sweep must be a sweep's directory"),
        (["sweep=x"], "sweep must be null where task is pipeline"),
        (["task=sweep_report", "sweep=x", "run_dir=y"], "run_dir must be null where task is"),
    ],
)
def test_a_sweep_is_named_where_one_is_read(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(compose(overrides))


def test_a_directory_that_is_no_search_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "sweep.json", {"jobs": 3})
    with pytest.raises(UserError, match=r"^sweep must be the directory of a search with Optuna"):
        sweep_report.run(check(compose(["task=sweep_report", f"sweep={tmp_path}"])))
