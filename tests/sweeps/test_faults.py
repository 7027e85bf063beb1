"""The real command under what a machine does to it: kills, a NaN, an exception, two of them at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.runs.files import read_json
from rlhf_lightning.sweeps.reading import read_sweep
from tests.harness import only, start, wait_for
from tests.sweeps.test_command import OPTUNA, saved

RATES = [f"{i}e-3" for i in range(1, 15)]
"""Learning rates that train, beside 1e15, after whose one step attention overflows to NaN, and 1e300, which no float32 holds."""
SHUFFLE, NAN, RAISES = 2, 13, 14
"""The seed that puts these two at the places 13 and 14 of the grid: they come after the kills."""
OBJECTIVE = (
    "hydra.sweeper.objectives=[pretrain/val_loss]",
    "hydra.sweeper.directions=[minimize]",
)


def sixteen(cwd: Path) -> subprocess.Popen[str]:
    return start(
        cwd,
        *OPTUNA,
        *OBJECTIVE,
        "task=pretrain",
        # one step: no gradient is left to tell a NaN before the validation does
        "pretrain.examples=32",
        f"pretrain.optimizer.lr={','.join([*RATES, '1e15', '1e300'])}",
        "hydra.sweeper.sampler.name=grid",
        f"hydra.sweeper.sampler.seed={SHUFFLE}",
        "hydra.sweeper.n_trials=16",
        "hydra.sweeper.n_jobs=2",
        "hydra.sweeper.max_failure_rate=1",
    )


def numbers(sweep: Path, state: str) -> set[int]:
    """Trials in a state, as the study says."""
    return {trial.number for trial in read_sweep(sweep).trials if trial.state.name == state}


def begun(cwd: Path) -> Path | None:
    found = list((cwd / "outputs" / "sweeps").glob("*/study.journal"))
    return found[0].parent if found else None


def complete(cwd: Path) -> int:
    sweep = begun(cwd)
    return len(numbers(sweep, "COMPLETE")) if sweep else 0


def fresh_process(sweep: Path, before: set[int]) -> tuple[int, int] | None:
    """(trial, process) of one that began after those of `before`, at its very start."""
    for folder in sorted((sweep / "configs").iterdir()):
        pid = read_json(folder / "run.json").get("pid")
        if int(folder.name) not in before and pid:
            return int(folder.name), pid
    return None


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sixteen_real_trials_end_with_their_states_whatever_is_killed(tmp_path: Path) -> None:
    lost: set[int] = set()
    for reached in (2, 4):
        process = sixteen(tmp_path)
        wait_for(lambda reached=reached: complete(tmp_path) >= reached, process, timeout=1500)
        process.kill()
        process.communicate()
        sweep = only(tmp_path / "outputs" / "sweeps")
        lost |= numbers(sweep, "RUNNING")
    before = {int(folder.name) for folder in (sweep / "configs").iterdir()}
    assert max(before) < NAN - 1, "the machine is so fast that the kills came too late"
    last = sixteen(tmp_path)
    wait_for(lambda: fresh_process(sweep, before) is not None, last, timeout=600)
    victim = fresh_process(sweep, before)
    assert victim is not None
    os.kill(victim[1], signal.SIGKILL)
    _, errors = last.communicate(timeout=1500)
    assert last.returncode == 0, errors

    files = sorted((sweep / "trials").glob("*.json"))
    found = {record["number"]: record for record in map(loaded, files)}
    assert sorted(found) == list(range(16))
    failed = {n: r["reason"] for n, r in found.items() if r["state"] == "FAIL"}
    assert {r["state"] for r in found.values()} == {"COMPLETE", "FAIL"}
    assert set(failed) == lost | {victim[0], NAN, RAISES}
    assert all(failed[number].startswith("lost: its sweep process ") for number in lost)
    assert failed[victim[0]].startswith("killed by SIGKILL")
    assert failed[NAN] == "pretrain/val_loss is not finite"
    assert failed[RAISES].startswith("RuntimeError: ")

    again = saved(tmp_path, sweep, "run_dir=again")
    assert again.returncode == 0, again.stderr
    best = min(
        (r for r in found.values() if r["values"]), key=lambda r: r["values"]["pretrain/val_loss"]
    )
    first = loaded(sweep / "trials" / f"{best['number']:04d}" / "metrics.json")["metrics"]
    assert untimed(loaded(tmp_path / "again" / "metrics.json")["metrics"]) == untimed(first)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_real_commands_share_the_trials_of_one_study(tmp_path: Path) -> None:
    def command() -> subprocess.Popen[str]:
        return start(
            tmp_path,
            *OPTUNA,
            *OBJECTIVE,
            "task=pretrain",
            "pretrain.optimizer.lr=tag(log,interval(1e-4,1e-2))",
            "hydra.sweeper.n_trials=5",
        )

    both = [command(), command()]
    for process in both:
        _, errors = process.communicate(timeout=1500)
        assert process.returncode == 0, errors
    sweep = only(tmp_path / "outputs" / "sweeps")
    found = [loaded(file) for file in sorted((sweep / "trials").glob("*.json"))]
    assert [(record["number"], record["state"]) for record in found] == [
        (number, "COMPLETE") for number in range(5)
    ]
    assert len({record["worker"] for record in found}) == 2
    runs = {record["run"] for record in found}
    assert runs == {str(path) for path in (tmp_path / "outputs" / "pretrain").iterdir()}
    assert len(runs) == 5
    # each was trained once: none waited for another one or found its run finished
    for file in (sweep / "logs").glob("*.txt"):
        assert file.read_text(encoding="utf-8").count("pretrain: new,") == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_identical_parameters_reuse_the_real_run(tmp_path: Path) -> None:
    one = ("task=pretrain", "pretrain.examples=32", "pretrain.optimizer.lr=choice(1e-3)")
    process = start(tmp_path, *OPTUNA, *OBJECTIVE, *one, "hydra.sweeper.n_trials=2")
    _, errors = process.communicate(timeout=800)
    assert process.returncode == 0, errors
    sweep = only(tmp_path / "outputs" / "sweeps")
    first, second = (loaded(file) for file in sorted((sweep / "trials").glob("*.json")))
    assert (first["run"], first["values"]) == (second["run"], second["values"])
    log = (sweep / "logs" / "0001.txt").read_text(encoding="utf-8")
    assert "pretrain: finished already" in log


def loaded(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}
