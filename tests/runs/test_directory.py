from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.errors import Interrupted, RunFailed, UserError
from rlhf_lightning.runs import Run, find_runs, run, run_path
from rlhf_lightning.runs.signals import Stop

WORKER = """
path, counter = Path(sys.argv[1]), Path(sys.argv[2])
with claim(path, say=say, **settings) as run:
    if run.finished:
        print("already finished", flush=True)
    else:
        with counter.open("a") as file:
            file.write("x")
        run.checkpoints.mkdir(exist_ok=True)
        (run.checkpoints / "last").write_text("10")
        run.update({"ppo/kl_k1": 1.0})
        print("working", flush=True)
        while not (counter.parent / "go").exists():
            time.sleep(0.01)
        run.finish({"ppo/gold_score": 0.5})
"""


def record(path: Path) -> dict[str, Any]:
    return json.loads((path / "metrics.json").read_text())


def test_a_run_holds_its_config_its_identity_and_its_result(tmp_path: Path, open_run, identity):
    with open_run(tmp_path / "run") as run:
        assert not run.finished
        assert not run.continued
        assert run.status == "running"
        run.finish({"ppo/kl_k1": 2.5, "ppo/broken": float("nan")})
    assert (
        record(run.path).items()
        >= {
            "task": "ppo",
            "name": "nano-demo-s0",
            "seed": 0,
            "status": "finished",
            "metrics": {"ppo/kl_k1": 2.5, "ppo/broken": None},
            "pid": os.getpid(),
        }.items()
    )
    assert json.loads((run.path / "identity.json").read_text())["identity"] == identity
    assert (run.path / ".hydra/config.yaml").read_text() == "ppo:\n  kl_coef: 0.05\n"
    assert (
        run.path / ".hydra/overrides.yaml"
    ).read_text() == '- "task=ppo"\n- "ppo.kl_coef=0.05"\n'
    assert sorted(os.listdir(run.path)) == [".hydra", "identity.json", "metrics.json"]


def test_the_path_of_a_run_is_determined_by_its_identity(identity):
    path = run_path("outputs", "ppo", "nano-demo-s0", identity)
    assert re.fullmatch(r"outputs/ppo/nano-demo-s0-[0-9a-f]{12}", path.as_posix())


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RunFailed("loss is nan at step 3"), "failed", "loss is nan at step 3"),
        (KeyError("x"), "failed", "KeyError: 'x'"),
        (SystemExit(1), "failed", "SystemExit: 1"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt: "),
        (Interrupted(15), "interrupted", "stopped by SIGTERM; the same command continues"),
    ],
)
def test_what_leaves_the_block_is_the_status(
    tmp_path: Path, open_run, error: BaseException, status: str, reason: str
):
    with pytest.raises(type(error)), open_run(tmp_path / "run"):
        raise error
    assert (record(tmp_path / "run")["status"], record(tmp_path / "run")["reason"]) == (
        status,
        reason,
    )


def test_an_exit_that_a_signal_asked_for_is_an_interruption(tmp_path: Path, open_run):
    stop = Stop()
    with pytest.raises(SystemExit), open_run(tmp_path / "run", stop=stop):
        stop.handle(signal.SIGTERM)
        raise SystemExit
    assert record(tmp_path / "run")["status"] == "interrupted"


def test_a_pruned_run_stays_pruned_when_an_exception_carries_the_news(tmp_path: Path, open_run):
    with pytest.raises(KeyError), open_run(tmp_path / "run") as run:
        run.prune("kl 80 > 50", {"ppo/kl_k1": 80})
        raise KeyError
    assert (record(run.path)["status"], record(run.path)["reason"]) == ("pruned", "kl 80 > 50")


def test_a_run_that_goes_on_after_it_was_given_up_has_its_own_metrics(tmp_path: Path, open_run):
    with pytest.raises(KeyError), open_run(tmp_path / "run") as run:
        run.prune("kl 80 > 50", {"val/kl_k1": 80})
        raise KeyError
    with open_run(tmp_path / "run") as run:
        run.finish({"ppo/kl_k1": 3})
    assert record(run.path)["metrics"] == {"ppo/kl_k1": 3}


def test_a_block_that_forgets_to_finish_is_an_error(tmp_path: Path, open_run):
    with pytest.raises(RuntimeError, match=r"without run.finish"), open_run(tmp_path / "run"):
        pass
    assert record(tmp_path / "run")["status"] == "failed"


def test_the_same_claim_continues_and_the_duration_adds_up(
    tmp_path: Path, open_run, monkeypatch: pytest.MonkeyPatch
):
    clock = iter(range(100, 10_000, 7))
    monkeypatch.setattr("rlhf_lightning.runs.run.time.monotonic", lambda: next(clock))
    with pytest.raises(Interrupted), open_run(tmp_path / "run") as run:
        run.update({"ppo/kl_k1": 1})
        raise Interrupted(15)
    first = record(run.path)
    with open_run(tmp_path / "run") as run:
        assert run.continued
        assert run.status == "running"
        run.finish({"ppo/gold_score": 1})
    last = record(run.path)
    assert last["metrics"] == {"ppo/kl_k1": 1, "ppo/gold_score": 1}
    assert last["started"] == first["started"]
    assert last["duration_s"] > first["duration_s"] > 0


def test_a_finished_run_is_left_alone(tmp_path: Path, open_run):
    with open_run(tmp_path / "run") as run:
        run.finish({"ppo/gold_score": 1})
    before = record(run.path)
    with open_run(tmp_path / "run") as run:
        assert run.finished
        assert run.metrics == {"ppo/gold_score": 1}
    assert record(run.path) == before


def test_a_user_error_before_any_work_leaves_no_directory(tmp_path: Path, open_run):
    with pytest.raises(UserError), open_run(tmp_path / "outputs" / "ppo" / "run") as run:
        run.tensorboard.mkdir()
        (run.tensorboard / "events").write_text("x")
        raise UserError("mix.sources.mine.path must exist, got 'x'")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("work", ["checkpoints/last", "artifact/x", "round-1/sft/identity.json"])
def test_a_user_error_after_work_keeps_it(tmp_path: Path, open_run, work: str):
    with pytest.raises(UserError), open_run(tmp_path / "run") as run:
        (run.path / work).parent.mkdir(parents=True)
        (run.path / work).write_text("{}")
        raise UserError("late")
    assert (tmp_path / "run" / work).exists()
    assert record(tmp_path / "run")["status"] == "failed"


def test_a_user_error_in_a_continued_or_linked_run_keeps_it(tmp_path: Path, open_run):
    with pytest.raises(KeyError), open_run(tmp_path / "run"):
        raise KeyError
    with pytest.raises(UserError), open_run(tmp_path / "run"):
        raise UserError("late")
    with pytest.raises(UserError), open_run(tmp_path / "pipeline") as run:
        run.link(tmp_path / "run", "round-1/sft")
        raise UserError("late")
    assert record(tmp_path / "run")["reason"] == record(tmp_path / "pipeline")["reason"] == "late"


def test_a_run_of_another_identity_is_refused_with_the_keys_that_differ(tmp_path: Path, open_run):
    with open_run(tmp_path / "run") as run:
        run.finish({})
    other = {"ppo": {"kl_coef": 0.1, "epochs": 4}, "seed": 0}
    with pytest.raises(UserError) as caught, open_run(tmp_path / "run", identity=other):
        pass
    assert str(caught.value) == (
        f"run_dir must be free or the same run, got '{tmp_path / 'run'}', "
        "a run that differs in ppo.kl_coef: 0.05 → 0.1"
    )
    with (
        pytest.raises(UserError, match='differs in task: "ppo" → "sft"'),
        open_run(tmp_path / "run", task="sft"),
    ):
        pass


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path: Path, open_run):
    (tmp_path / "thesis.tex").write_text("x")
    with (
        pytest.raises(UserError, match=r"empty or a run, got .*something else"),
        open_run(tmp_path),
    ):
        pass
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("place", ["file", "file/run", "locked/a/run", "/proc/run"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, open_run, place: str):
    (tmp_path / "file").write_text("")
    (tmp_path / "locked").mkdir()
    if place.startswith("locked"):
        (tmp_path / "locked").chmod(0o500)
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
    with (
        pytest.raises(UserError, match=r"^outputs must be a"),
        open_run(tmp_path / place, key="outputs"),
    ):
        pass
    (tmp_path / "locked").chmod(0o700)
    assert sorted(os.listdir(tmp_path)) == ["file", "locked"]
    assert os.listdir(tmp_path / "locked") == []


def test_a_change_of_commit_only_warns(tmp_path: Path, open_run, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    for commit in ("abc", "def"):
        monkeypatch.setattr(run, "git_commit", lambda commit=commit: commit)
        with pytest.raises(KeyError), open_run(tmp_path / "run", say=said.append):
            raise KeyError
    assert said == [f"{tmp_path / 'run'} was last written by commit abc and goes on with def"]


def test_a_killed_run_counts_as_interrupted_and_is_continued_at_once(
    tmp_path: Path, open_run, spawn
):
    worker = spawn(WORKER, tmp_path / "run", tmp_path / "counter")
    assert worker.stdout.readline() == "working\n"
    assert [found.status for found in find_runs(tmp_path)] == ["running"]
    worker.kill()
    worker.wait()
    (tmp_path / "run" / ".metrics.json.0123456789ab.tmp").write_text('{"half')
    assert [found.status for found in find_runs(tmp_path)] == ["interrupted"]
    with open_run(tmp_path / "run", say=pytest.fail) as run:
        assert run.continued
        assert run.metrics == {"ppo/kl_k1": 1.0}
        assert (run.checkpoints / "last").read_text() == "10"
        run.finish({})
    assert not run.checkpoints.exists()  # nothing goes on from them
    assert not list((tmp_path / "run").glob(".*.tmp"))
    assert not (tmp_path / "run" / ".lease").exists()


def test_two_processes_do_the_work_once(tmp_path: Path, spawn):
    first = spawn(WORKER, tmp_path / "run", tmp_path / "counter")
    assert first.stdout.readline() == "working\n"
    second = spawn(WORKER, tmp_path / "run", tmp_path / "counter")
    assert f"owned by process {first.pid} on" in second.stdout.readline()
    (tmp_path / "go").write_text("")
    assert second.stdout.read() == "already finished\n"
    assert (first.wait(), second.wait()) == (0, 0)
    assert (tmp_path / "counter").read_text() == "x"


def test_many_that_find_a_killed_owner_do_the_work_once(tmp_path: Path, spawn):
    killed = spawn(WORKER, tmp_path / "a" / "run", tmp_path / "counter")
    assert killed.stdout.readline() == "working\n"
    killed.kill()
    killed.wait()
    (tmp_path / "go").write_text("")
    workers = [spawn(WORKER, tmp_path / "a" / "run", tmp_path / "counter") for _ in range(4)]
    assert [worker.wait() for worker in workers] == [0, 0, 0, 0]
    assert (tmp_path / "counter").read_text() == "x" + "x"  # the killed one's and one more


def test_a_run_that_was_taken_over_writes_nothing_more(tmp_path: Path, open_run):
    def lose(run: Run) -> None:
        assert run._lease is not None
        run._lease.lost.set()
        with pytest.raises(RunFailed, match=r"another process owns this run"):
            run.update()
        run.finish({"x": 1})

    with pytest.raises(RunFailed), open_run(tmp_path / "run") as run:
        lose(run)
    assert record(run.path)["status"] == "running"


def test_an_empty_folder_of_the_users_own_stays(tmp_path: Path, open_run):
    """It may have rights that were given to it."""
    place = tmp_path / "mine"
    place.mkdir(mode=0o750)
    with pytest.raises(UserError), open_run(place):
        raise UserError("sft.optimizer: no")
    assert place.is_dir() and os.listdir(place) == []
