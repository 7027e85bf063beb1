from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.runs import link, mark_latest
from rlhf_lightning.runs.files import git_commit, write_json

WRITER = """
from rlhf_lightning.runs.files import write_json
path = Path(sys.argv[1])
i = 0
while True:
    write_json(path, {"i": i, "filling": [i] * 20000})
    i += 1
"""


def test_a_kill_while_writing_leaves_old_or_new_content(tmp_path: Path, spawn, wait_for):
    path = tmp_path / "metrics.json"
    for moment in range(3):
        path.unlink(missing_ok=True)
        process = spawn(WRITER, path)
        wait_for(path.exists)
        time.sleep(random.Random(moment).uniform(0, 0.05))
        process.kill()
        process.wait()
        found = json.loads(path.read_text())
        assert found["filling"] == [found["i"]] * 20000


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(UnicodeEncodeError):
        write_json(tmp_path / "x.json", "\ud800")
    assert list(tmp_path.iterdir()) == []


def test_links_are_relative_and_replaced(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / "outputs" / "sft" / name).mkdir(parents=True)
    place = tmp_path / "outputs" / "pipeline" / "p" / "round-1" / "sft"
    link(tmp_path / "outputs" / "sft" / "a", place)
    link(tmp_path / "outputs" / "sft" / "b", place)
    assert os.readlink(place) == "../../../sft/b"
    assert [item.name for item in place.parent.iterdir()] == ["sft"]
    (tmp_path / "outputs").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / "pipeline" / "p" / "round-1" / "sft"
    assert moved.resolve() == tmp_path / "moved" / "sft" / "b"


def test_a_link_to_its_own_place_is_left_alone_and_nothing_else_is_overwritten(tmp_path: Path):
    (tmp_path / "sft").mkdir()
    link(tmp_path / "sft", tmp_path / "sft")
    assert not (tmp_path / "sft").is_symlink()
    with pytest.raises(UserError, match=r"run_dir must leave room for a link, got .*sft"):
        link(tmp_path, tmp_path / "sft")


def test_latest_points_at_the_last_run(tmp_path: Path):
    for name in ("ppo/a", "ppo/b"):
        (tmp_path / name).mkdir(parents=True)
        mark_latest(tmp_path, tmp_path / name)
    assert os.readlink(tmp_path / "latest") == "ppo/b"


def test_git_commit_ignores_where_git_was_pointed(monkeypatch: pytest.MonkeyPatch):
    git_commit.cache_clear()
    expected = git_commit()
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    git_commit.cache_clear()
    assert git_commit() == expected


def test_a_link_that_cannot_be_replaced_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In a folder with the sticky bit `latest` may be somebody else's."""

    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(PermissionError):
        link(tmp_path / "run", tmp_path / "latest")
    assert os.listdir(tmp_path) == []
