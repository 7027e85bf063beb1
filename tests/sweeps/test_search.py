"""A study reaches its number of trials whatever happens, each with its state and its reason."""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path

import optuna
import pytest
import yaml

from rlhf_lightning.errors import RunFailed, UserError
from rlhf_lightning.runs.files import read_json
from rlhf_lightning.sweeps.samplers import CONSTRAINED
from rlhf_lightning.sweeps.storage import open_storage, open_study
from tests.sweeps.searching import done, records, run_search, start_search, starts, states, until


def test_n_trials_is_a_total_over_resumes(tmp_path: Path) -> None:
    run_search(tmp_path, n_trials=2)
    first = records(tmp_path)
    run_search(tmp_path, n_trials=4)
    run_search(tmp_path, n_trials=4)
    assert states(tmp_path) == ["COMPLETE"] * 4
    assert starts(tmp_path) == 4
    assert records(tmp_path)[:2] == first
    # a sampler that began again with its seed would draw the first two again
    assert len({record["params"]["ppo.kl_coef"] for record in records(tmp_path)}) == 4


def test_the_trials_of_a_search_do_not_depend_on_how_often_it_was_started(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    sampler = {"name": "tpe", "args": {"n_startup_trials": 1}}
    run_search(tmp_path / "a", n_trials=4, sampler=sampler)
    for total in (1, 3, 4):
        run_search(tmp_path / "b", n_trials=total, sampler=sampler)
    params = [[r["params"] for r in records(tmp_path / name)] for name in ("a", "b")]
    assert params[0] == params[1]


def test_two_processes_share_the_trials_of_one_study(tmp_path: Path) -> None:
    settings = {"n_trials": 9, "n_jobs": 2}
    both = [start_search(tmp_path, {"FAKE_SECONDS": "0.3"}, **settings) for _ in range(2)]
    assert [process.wait(timeout=200) for process in both] == [0, 0]
    found = records(tmp_path)
    assert [record["number"] for record in found] == list(range(9))
    assert states(tmp_path) == ["COMPLETE"] * 9
    assert starts(tmp_path) == 9
    assert len({record["params"]["ppo.kl_coef"] for record in found}) == 9
    assert len({record["worker"] for record in found}) == 2


def test_an_idle_worker_gets_the_next_trial_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # trial 0 ends after the two others: in batches of two, the third would wait for it, and it for the third
    monkeypatch.setenv("FAKE", "0000:last")
    run_search(tmp_path, n_trials=3, n_jobs=2)
    assert states(tmp_path) == ["COMPLETE"] * 3


def test_identical_parameters_share_one_run(tmp_path: Path) -> None:
    run_search(tmp_path, ["ppo.kl_coef=choice(0.1)"], n_trials=2)
    first, second = records(tmp_path)
    assert first["params"] == second["params"] == {"ppo.kl_coef": 0.1}
    assert first["run"] == second["run"]
    assert first["values"] == second["values"]
    assert starts(tmp_path) == 1


def test_a_second_signal_kills_the_trials_and_they_still_wait(tmp_path: Path) -> None:
    process = start_search(tmp_path, {"FAKE": "all:stubborn", "FAKE_SECONDS": "600"}, n_trials=2)
    until(lambda: bool(list((tmp_path / "outputs").glob("ppo/*/stubborn"))), process)
    process.send_signal(signal.SIGINT)
    time.sleep(2)  # a second one within moments counts as the same
    assert process.poll() is None, "the trial does not end by the first signal"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=100) != 0
    assert states(tmp_path) == ["WAITING"]


def test_sixteen_trials_end_with_their_states_though_the_sweep_was_killed_twice(
    tmp_path: Path,
) -> None:
    env = {"FAKE": "0002:kill 0014:raise", "FAKE_NAN": "0015", "FAKE_SECONDS": "0.3"}
    settings = {"n_trials": 16, "n_jobs": 2}
    for reached in (4, 8):
        process = start_search(tmp_path, env, **settings)
        until(lambda reached=reached: done(tmp_path) >= reached, process)
        process.kill()
        process.wait()
    last = start_search(tmp_path, env, **settings)
    assert last.wait(timeout=200) == 0
    found = records(tmp_path)
    assert [record["number"] for record in found] == list(range(16))
    assert set(states(tmp_path)) == {"COMPLETE", "FAIL"}
    failed = {r["number"]: r["reason"] for r in found if r["state"] == "FAIL"}
    ours = {number: failed.pop(number) for number in (2, 14, 15)}
    assert ours[2].startswith("killed by SIGKILL")
    assert ours[14] == "ValueError: a bad number"
    assert ours[15] == "ppo/validation/gold_score is not finite"
    # at most the two that ran at each of the two kills
    assert len(failed) <= 4
    assert all(reason.startswith("lost: its sweep process ") for reason in failed.values())
    best = min(
        (r for r in found if r["state"] == "COMPLETE"),
        key=lambda r: -r["values"]["ppo/validation/gold_score"],
    )
    sweep = tmp_path / "sweep"
    config = yaml.safe_load((sweep / "best.yaml").read_text(encoding="utf-8"))
    assert config["ppo"]["kl_coef"] == best["params"]["ppo.kl_coef"]
    linked = read_json(sweep / "trials" / f"{best['number']:04d}" / "metrics.json")
    assert (
        linked["metrics"]["ppo/validation/gold_score"]
        == best["values"]["ppo/validation/gold_score"]
    )


def test_a_signal_puts_the_running_trials_back_and_the_same_command_continues_them(
    tmp_path: Path,
) -> None:
    process = start_search(tmp_path, {"FAKE_SECONDS": "600"}, n_trials=3, n_jobs=2)
    until(lambda: starts(tmp_path) == 2, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert states(tmp_path) == ["WAITING", "WAITING"]
    before = [record["params"] for record in records(tmp_path)]
    run_search(tmp_path, n_trials=3)
    assert states(tmp_path) == ["COMPLETE"] * 3
    assert [record["params"] for record in records(tmp_path)][:2] == before


def test_a_failed_trial_is_run_again_in_its_own_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "0001:once")
    run_search(tmp_path, n_trials=2, retry_failed=1, max_failure_rate=1.0)
    found = records(tmp_path)
    # two trials and the retry of the second
    assert states(tmp_path) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert found[2]["retry_of"] == 1
    assert found[2]["params"] == found[1]["params"]
    assert found[2]["run"] == found[1]["run"]


def test_retries_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE", "all:mute")
    with pytest.raises(RunFailed, match=r"1 of 1 trials failed.*nothing could be loaded"):
        run_search(tmp_path, n_trials=1, retry_failed=2)
    assert [(r["state"], r["retry_of"]) for r in records(tmp_path)] == [("FAIL", None)] + [
        ("FAIL", 0)
    ] * 2


def test_too_many_failures_end_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE", "all:raise")
    with pytest.raises(
        RunFailed, match=r"3 of 8 trials failed.*max_failure_rate=0\.25.*a bad number"
    ):
        run_search(tmp_path, n_trials=8, max_failure_rate=0.25)
    # 2 of 8 are a quarter, the third is too many
    assert states(tmp_path) == ["FAIL"] * 3


def test_a_config_that_is_refused_fails_without_a_process_and_without_a_retry(
    tmp_path: Path,
) -> None:
    space = ["ppo.kl_coef=0.1,refused"]
    run_search(tmp_path, space, n_trials=None, sampler={"name": "grid"}, retry_failed=3)
    by_value = {r["params"]["ppo.kl_coef"]: r for r in records(tmp_path)}
    assert len(records(tmp_path)) == 2
    assert by_value["refused"]["state"] == "FAIL"
    assert by_value["refused"]["reason"] == "ppo.kl_coef must be a number, got 'refused'"
    assert starts(tmp_path) == 1


def test_a_pruned_run_is_a_pruned_trial_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "0000:prune")
    run_search(tmp_path, n_trials=2)
    assert states(tmp_path) == ["PRUNED", "COMPLETE"]
    assert records(tmp_path)[0]["reason"] == "val/kl_k1 is 30, above"


def test_a_grid_visits_every_combination_once(tmp_path: Path) -> None:
    space = ["ppo.kl_coef=0.01,0.1", "seed=range(0,2)"]
    run_search(tmp_path, space, n_trials=3, sampler={"name": "grid"})
    run_search(tmp_path, space, n_trials=None, sampler={"name": "grid"})
    points = {tuple(sorted(record["params"].items())) for record in records(tmp_path)}
    assert len(points) == len(records(tmp_path)) == 4


def test_the_best_trial_satisfies_the_constraints(tmp_path: Path) -> None:
    # kl_k1 = 1 / (0.01 + kl_coef): 16.7 at 0.05, which would be the best, and 6.25 at 0.15
    space, grid = ["ppo.kl_coef=0.05,0.15,0.19"], {"name": "grid"}
    best = run_search(
        tmp_path, space, n_trials=3, sampler=grid, constraints=["ppo/validation/kl_k1 <= 10"]
    )
    assert best["ppo/validation/kl_k1"] == pytest.approx(6.25)
    by_value = {r["params"]["ppo.kl_coef"]: r["constraints"] for r in records(tmp_path)}
    assert by_value[0.05] == {"ppo/validation/kl_k1 <= 10": False}
    assert by_value[0.19] == {"ppo/validation/kl_k1 <= 10": True}


def test_several_objectives_have_a_front(tmp_path: Path) -> None:
    # gold = 1 - |x - 0.05|, KL falls as x grows: 0.01 has less gold and more KL than 0.05; 0.05 and 0.15 trade
    space = ["ppo.kl_coef=0.01,0.05,0.15"]
    objectives = {
        "objectives": ["ppo/validation/gold_score", "ppo/validation/kl_k1"],
        "directions": ["maximize", "minimize"],
    }
    run_search(tmp_path, space, n_trials=3, sampler={"name": "grid"}, **objectives)
    files = sorted((tmp_path / "sweep" / "pareto").glob("*.yaml"))
    front = {yaml.safe_load(file.read_text(encoding="utf-8"))["ppo"]["kl_coef"] for file in files}
    assert front == {0.05, 0.15}
    assert not (tmp_path / "sweep" / "best.yaml").exists()


@pytest.mark.parametrize("name", ["tpe", "nsga2", "cmaes", "random"])
def test_every_sampler_searches_under_a_constraint(tmp_path: Path, name: str) -> None:
    if name == "cmaes":
        pytest.importorskip("cmaes", reason="the package cmaes is not installed")
    args = {"n_startup_trials": 1} if name in ("tpe", "cmaes") else {}
    space = ["ppo.kl_coef=tag(log,interval(0.005,0.2))", "seed=int(interval(0,9))"]
    sampler = {"name": name, "args": args}
    run_search(
        tmp_path,
        space,
        n_trials=3,
        n_jobs=2,
        sampler=sampler,
        constraints=["ppo/validation/kl_k1 <= 50"],
    )
    assert states(tmp_path) == ["COMPLETE"] * 3
    # TPE and NSGA-II are told by how much each trial violates it
    journal = (tmp_path / "sweep" / "study.journal").read_text(encoding="utf-8")
    assert ("ppo/validation/kl_k1 <= 50" in journal) == (name in CONSTRAINED)


@pytest.mark.parametrize(
    ("metric", "warned"), [("ppo/validation/gold_score", True), ("val/gold_score", False)]
)
def test_a_pruner_that_can_never_prune_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, metric: str, warned: bool
) -> None:
    pruner = {"name": "median", "metric": metric}
    run_search(tmp_path, n_trials=1, sampler={"name": "random", "args": {}}, pruner=pruner)
    said = f"pruner.metric={metric} was measured at no validation of trial 0"
    assert (said in caplog.text) == warned
    assert ("did you mean val/gold_score?" in caplog.text) == warned


@pytest.mark.parametrize(
    ("metric", "warned"), [("ppo/validation/kl_k11", True), ("ppo/validation/kl_k1", False)]
)
def test_a_constraint_that_nobody_measures_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, metric: str, warned: bool
) -> None:
    run_search(tmp_path, n_trials=1, constraints=[f"{metric} <= 1e9"])
    said = (
        f"metrics.json has no {metric}, so no trial satisfies it; did you mean ppo/validation/kl_k1"
    )
    assert (said in caplog.text) == warned


def test_commands_that_start_at_once_share_a_new_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    both = [start_search(tmp_path, n_trials=2, storage=url) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0], (tmp_path / "stderr.txt").read_text()
    assert states(tmp_path) == ["COMPLETE"] * 2


def test_a_database_may_hold_the_study(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    run_search(tmp_path, n_trials=1, storage=url)
    run_search(tmp_path, n_trials=2, storage=url)
    assert states(tmp_path) == ["COMPLETE"] * 2
    (name,) = optuna.get_all_study_names(url)
    assert name.startswith("test-")
    assert "sqlite" not in (tmp_path / "sweep" / "sweep.json").read_text(encoding="utf-8")


def test_a_study_and_its_directory_belong_to_each_other(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    # the name has a hash of the settings, not of the place
    run_search(here, n_trials=1, storage=url)
    with pytest.raises(UserError, match=r"got one that belongs to another directory"):
        run_search(there, n_trials=1, storage=url)
    before = (here / "sweep" / "trials" / "0000.json").read_bytes()
    with pytest.raises(UserError, match=r"got one that is new"):
        run_search(here, n_trials=1)  # the URL was forgotten
    assert (here / "sweep" / "trials" / "0000.json").read_bytes() == before


def test_a_database_that_is_not_there_is_refused_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^hydra\.sweeper\.storage must be") as error:
        run_search(tmp_path, n_trials=1, storage="nodb://me:secret@host/x")
    assert "secret" not in str(error.value)
    # written wrong, it is no less a secret
    for url in ("postgresql:/me:secret@host/x", "me:secret@host", "sqlite://me:secret@h/x"):
        with pytest.raises(UserError) as error:
            run_search(tmp_path, n_trials=1, storage=url)
        assert "secret" not in str(error.value)


def test_a_lock_that_a_kill_left_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sweep").mkdir()
    study = open_study(open_storage(Path("sweep"), None), "s", ["maximize"])
    backend = study._storage._backend
    backend._lock.grace_period = 1
    backend._lock.acquire()  # and never released
    study.add_trial(optuna.trial.create_trial(value=1.0))
    assert len(study.trials) == 1


def test_an_entry_that_another_process_left_half_written_is_cut_in_a_living_study(
    tmp_path: Path,
) -> None:
    study = open_study(open_storage(tmp_path, None), "s", ["maximize"])
    with open(tmp_path / "study.journal", "ab") as journal:
        journal.write(b'{"op_code": 5, "wor')
    study.add_trial(optuna.trial.create_trial(value=1.0))
    again = open_study(open_storage(tmp_path, None), "s", ["maximize"])
    assert [trial.value for trial in again.trials] == [1.0]


def test_a_journal_whose_last_entry_was_cut_by_a_crash_is_read_again(tmp_path: Path) -> None:
    run_search(tmp_path, n_trials=1)
    with open(tmp_path / "sweep" / "study.journal", "ab") as journal:
        journal.write(b'{"op_code": 5, "wor')
    run_search(tmp_path, n_trials=2)
    assert states(tmp_path) == ["COMPLETE"] * 2


def test_another_sweep_does_not_go_into_the_same_directory(tmp_path: Path) -> None:
    run_search(tmp_path, n_trials=1)
    with pytest.raises(UserError, match=r"^run_dir must be free or the same sweep.*constraints"):
        run_search(tmp_path, n_trials=1, constraints=["ppo/validation/kl_k1 <= 1"])
    (tmp_path / "sweep" / "sweep.json").unlink()
    with pytest.raises(UserError, match=r"^run_dir must be empty or a sweep"):
        run_search(tmp_path, n_trials=1)


def test_the_learned_score_as_the_only_objective_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="rlhf_lightning"), pytest.raises(RunFailed):
        run_search(tmp_path, n_trials=1, objectives=["ppo/reward_score"], max_failure_rate=0)
    assert "reward hacking" in caplog.text
    # and what metrics.json does not have is said with what it has
    assert records(tmp_path)[0]["reason"].startswith("metrics.json has no ppo/reward_score")


def test_a_command_that_cannot_start_fails_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="its process could not start"):
        run_search(tmp_path, n_trials=1, command=[str(tmp_path / "nothing")])
