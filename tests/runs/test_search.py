from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from rlhf_lightning.errors import RunFailed
from rlhf_lightning.runs import find_runs, mark_latest, nearest
from rlhf_lightning.runs.listing import runs_table


def make(open_run, outputs: Path, name: str, kl_coef: float, epochs: int) -> None:
    identity = {"ppo": {"kl_coef": kl_coef, "epochs": epochs}}
    with open_run(outputs / "ppo" / name, name=name, identity=identity) as run:
        run.finish({"ppo/gold_score": kl_coef, "ppo/eos_rate": 1.0})


def test_runs_are_found_once_and_in_order(tmp_path: Path, open_run):
    make(open_run, tmp_path, "b", 0.05, 4)
    make(open_run, tmp_path, "a", 0.1, 4)
    mark_latest(tmp_path, tmp_path / "ppo" / "a")
    found = find_runs(tmp_path)
    assert [run.name for run in found] == ["b", "a"]
    assert found[1].metrics["ppo/gold_score"] == 0.1
    assert find_runs(tmp_path / "nowhere") == []


def test_the_nearest_run_is_that_with_the_fewest_differing_keys(tmp_path: Path, open_run):
    make(open_run, tmp_path, "far", 0.2, 8)
    make(open_run, tmp_path, "near", 0.2, 4)
    found = nearest(tmp_path, "ppo", {"ppo": {"kl_coef": 0.3, "epochs": 4}})
    assert found is not None
    assert found[0].name == "near"
    assert [str(difference) for difference in found[1]] == ["ppo.kl_coef: 0.2 → 0.3"]
    assert nearest(tmp_path, "sft", {}) is None
    # another model's run is no neighbour
    assert nearest(tmp_path, "ppo", {"model": {"name": "small"}, "ppo": {"kl_coef": 0.2}}) is None


@pytest.mark.parametrize(
    "metrics",
    [
        {"metrics": None, "duration_s": None, "started": 5, "status": ["x"]},
        {"metrics": ["a"], "duration_s": 1e300, "started": "yesterday", "reason": {}},
        {"metrics": {"ppo/kl_k1": "low"}, "started": "2026-01-01T00:00:00"},
        {"metrics": {"x": 10**400, "\x1b[2J": 1.0}, "status": "\x1b[2J"},
    ],
)
def test_a_foreign_folder_hides_no_other_run(tmp_path: Path, open_run, metrics: dict) -> None:
    make(open_run, tmp_path, "first", 0.05, 4)
    other = tmp_path / "ppo" / "other"
    other.mkdir()
    (other / "identity.json").write_text(json.dumps({"task": "ppo", "identity": {"model": "x"}}))
    (other / "metrics.json").write_text(json.dumps(metrics))
    deep = tmp_path / "ppo" / "deep"
    deep.mkdir()
    (deep / "identity.json").write_text("[" * 100_000)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(runs_table(tmp_path))
    text = console.export_text()
    assert "ppo/first" in text and "\x1b" not in text
    assert nearest(tmp_path, "ppo", {}) is not None


def test_the_table_shows_status_metrics_and_what_differs(tmp_path: Path, open_run):
    make(open_run, tmp_path, "first", 0.05, 4)
    make(open_run, tmp_path, "second", 0.1, 4)
    with pytest.raises(RunFailed), open_run(tmp_path / "sft" / "third", task="sft"):
        raise RunFailed("loss is [nan] at step 3")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(runs_table(tmp_path))
    text = console.export_text()
    for expected in (
        "ppo/first",
        "finished",
        "ppo/gold_score 0.1",
        "ppo.kl_coef: 0.05 → 0.1",
        "loss is [nan] at step 3",
        "failed",
    ):
        assert expected in text
