from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.runs import new_artifact, resolve_artifact, sha256_tree

KEY = "ppo.init.policy"

WRITER = """
from rlhf_lightning.runs import new_artifact
path = Path(sys.argv[1])
i = 0
while True:
    with new_artifact(path, stage="sft", parents={}, config={}, metrics={}) as folder:
        (folder / "config.json").write_text("{}")
        (folder / "weights").write_text(str(i) * 1000)
    i += 1
"""


def make(path: Path, *, stage: str = "sft", weights: str = "1") -> Path:
    with new_artifact(
        path,
        stage=stage,
        parents={"policy": "ab" * 32},
        config={"sft": {"lr": 0.1}},
        metrics={"sft/loss": 1.25},
    ) as folder:
        (folder / "config.json").write_text('{"model_type": "llama"}')
        (folder / "model.safetensors").write_text(weights)
    return path


def refused(path: Path | str, message: str, **settings: Any) -> None:
    with pytest.raises(UserError) as caught:
        resolve_artifact(path, **{"stages": ("sft", "ppo"), "key": KEY, **settings})
    assert str(caught.value).startswith(KEY + " must be ") or " must have " in str(caught.value)
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


def test_an_artifact_has_a_manifest_and_a_model_card(tmp_path: Path):
    path = make(tmp_path / "artifact")
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest) == {
        "format_version",
        "stage",
        "parents",
        "sha256",
        "files",
        "git_commit",
        "config",
        "metrics",
        "created",
    }
    assert manifest["sha256"] == sha256_tree(path)
    assert set(manifest["files"]) == {"config.json", "model.safetensors"}
    card = (path / "README.md").read_text()
    assert "AutoModelForCausalLM.from_pretrained" in card
    assert "| sft/loss | 1.25 |" in card
    assert "- policy: artifact `abababababab`" in card


def test_an_artifact_is_found_by_its_path_and_checked(tmp_path: Path):
    path = make(tmp_path / "artifact")
    found = resolve_artifact(str(path), stages=("sft",), key=KEY)
    assert (found.path, found.stage, found.sha256) == (path, "sft", sha256_tree(path))
    assert found.manifest is not None
    assert found.manifest["metrics"] == {"sft/loss": 1.25}


def test_equal_weights_have_an_equal_sha256_whatever_the_metrics(tmp_path: Path):
    path = make(tmp_path / "a")
    with new_artifact(
        tmp_path / "b", stage="sft", parents={}, config={}, metrics={"time/sft_s": 3.0}
    ) as folder:
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_bytes((path / name).read_bytes())
    assert sha256_tree(tmp_path / "b") == sha256_tree(path)


def test_a_model_folder_without_manifest_has_no_stage(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    found = resolve_artifact(tmp_path, stages=("sft",), key=KEY)
    assert (found.stage, found.manifest, found.sha256) == (None, None, sha256_tree(tmp_path))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (
            lambda path: (path / "model.safetensors").write_text("2"),
            "model.safetensors was changed",
        ),
        (lambda path: (path / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda path: (path / "modeling.py").write_text("boo"), "modeling.py was added"),
        (lambda path: edit(path, sha256="0"), "sha256 in manifest.json is not that of its files"),
        (lambda path: edit(path, format_version=3), "format_version <= 2, got .* with 3"),
        (lambda path: (path / "manifest.json").write_text("{"), "readable manifest.json"),
        (lambda path: (path / "config.json").unlink(), "no config.json"),
    ],
)
def test_a_tampered_artifact_is_refused(
    tmp_path: Path, tamper: Callable[[Path], object], message: str
):
    path = make(tmp_path / "artifact")
    tamper(path)
    refused(path, message)


def edit(path: Path, **changes: Any) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


def test_a_missing_path_a_file_and_a_wrong_stage_are_refused(tmp_path: Path):
    refused(tmp_path / "nowhere", "got '.*nowhere', which does not exist")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "which is not a folder")
    refused(make(tmp_path / "rm", stage="reward"), "of stage ppo or sft, got '.*rm' of reward")


def test_a_finished_run_stands_for_its_artifact(tmp_path: Path, open_run):
    with open_run(tmp_path / "run") as run:
        make(run.artifact)
        run.finish({})
    found = resolve_artifact(tmp_path / "run", stages=("sft",), key=KEY)
    assert found.path == tmp_path / "run" / "artifact"


def test_runs_that_are_unfinished_or_have_no_model_are_refused(tmp_path: Path, open_run):
    with pytest.raises(RuntimeError), open_run(tmp_path / "a") as run:
        make(run.artifact)
        refused(tmp_path / "a", "a finished run, got .*a', which is running")
        raise RuntimeError
    refused(tmp_path / "a", "a finished run, got .*a', which is failed")
    with open_run(tmp_path / "b") as run:
        run.finish({})
    refused(tmp_path / "b", "with a model, got .*: a run of task=ppo has none")


def test_a_failing_block_changes_nothing(tmp_path: Path):
    path = make(tmp_path / "artifact", weights="old")

    def fail() -> None:
        with new_artifact(path, stage="sft", parents={}, config={}, metrics={}) as folder:
            (folder / "config.json").write_text("{}")
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert (path / "model.safetensors").read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["artifact"]


def test_a_newer_artifact_takes_the_place_of_the_old_one(tmp_path: Path):
    make(tmp_path / "artifact", weights="old")
    path = make(tmp_path / "artifact", weights="new")
    assert (path / "model.safetensors").read_text() == "new"
    assert [item.name for item in tmp_path.iterdir()] == ["artifact"]


def test_a_kill_while_replacing_leaves_an_artifact_that_is_whole(tmp_path: Path, spawn, wait_for):
    path = tmp_path / "artifact"
    for moment in range(3):
        process = spawn(WRITER, path)
        wait_for((path / "manifest.json").exists)
        time.sleep(random.Random(moment).uniform(0.15, 0.3))
        process.kill()
        process.wait()
        whole = path if path.exists() else tmp_path / ".artifact.old"
        assert resolve_artifact(whole, stages=("sft",), key=KEY).stage == "sft"
    make(path)
    assert [item.name for item in tmp_path.iterdir()] == ["artifact"]
