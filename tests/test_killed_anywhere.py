"""However a run ends, what it leaves under its final names is whole."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
import torch

from rlhf_lightning.runs.artifact import resolve_artifact
from tests.harness import only, start, wait_for

KILLS = 20
STAGES = ("pretrain", "sft", "reward", "ppo")
OFTEN = [f"{stage}.checkpoint_every=1" for stage in STAGES]
"""A checkpoint every step: a kill is likely to fall into the writing of one."""


def progress(outputs: Path) -> dict[Path, int]:
    """How much every stage has measured: it grows once a process trains."""
    return {file: file.stat().st_size for file in outputs.glob("*/*/metrics.csv")}


def require_whole(outputs: Path) -> dict[str, int]:
    """Raises if a file of a run is a part of one; returns how many of each kind were looked at."""
    seen = {"metrics.json": 0, "finished": 0, "checkpoint": 0, "artifact": 0}
    for file in outputs.glob("*/*/metrics.json"):
        found = json.loads(file.read_text(encoding="utf-8"))
        assert found["status"] in ("running", "finished"), file
        seen["metrics.json"] += 1
        if found["status"] == "finished":
            assert found["metrics"], file
            seen["finished"] += 1
    for name in ("last", "previous"):
        for file in outputs.glob(f"*/*/checkpoints/{name}.ckpt"):
            assert torch.load(file, weights_only=True, map_location="cpu")["state_dict"]
            seen["checkpoint"] += 1
    for folder in outputs.glob("*/*/artifact"):
        # compares every file with the manifest
        resolve_artifact(folder, stages=STAGES, key=str(folder.parent))
        seen["artifact"] += 1
    return seen


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_at_random_moments_leave_nothing_half_written(tmp_path: Path) -> None:
    rng = random.Random(0)
    looked_at: dict[str, int] = {}
    pipeline, ended = 0, 0
    for kill in range(KILLS):
        outputs = tmp_path / f"outputs-{pipeline}"
        before = progress(outputs)
        process = start(tmp_path, f"outputs={outputs}", f"seed={pipeline}", *OFTEN)
        wait_for(lambda: process.poll() == 0 or progress(outputs) != before, process)  # noqa: B023
        time.sleep(rng.uniform(0, 5))
        process.kill()
        process.communicate()
        for name, count in require_whole(outputs).items():
            looked_at[name] = looked_at.get(name, 0) + count
        if process.returncode == 0:  # the kill came too late: the next ones have a new pipeline
            pipeline, ended = pipeline + 1, ended + 1
        print(f"kill {kill + 1}: {looked_at}")
    assert ended < KILLS / 2 and min(looked_at.values()) > 0, looked_at
    # what was killed again and again ends as what never was
    outputs, straight = tmp_path / f"outputs-{pipeline}", tmp_path / "straight"
    for folder in (outputs, straight):
        process = start(tmp_path, f"outputs={folder}", f"seed={pipeline}", *OFTEN)
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, out + err
    assert final_weights(outputs) == final_weights(straight)


def final_weights(outputs: Path) -> dict[str, bytes]:
    """Of every artifact, by its stage."""
    return {
        stage: (only(outputs / stage) / "artifact" / "model.safetensors").read_bytes()
        for stage in STAGES
    }
