"""Which jobs a command submits; SLURM is played by a dict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning import jobs
from rlhf_lightning.slurm.folder import JobFolder
from tests.slurm.jobs_here import SMALL, root_of


@pytest.mark.parametrize(
    ("after", "cancelled"),
    [
        (["31", "32"], []),  # as it was
        (["32"], []),  # one of them has finished meanwhile
        (["31", "40"], ["33"]),  # 32 failed and is done again
    ],
)
def test_a_job_that_waits_for_a_dead_one_is_submitted_anew(
    after: list[str], cancelled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[str] = []

    def submit(folders: Sequence[JobFolder], *args: Any, **kwargs: Any) -> list[str]:
        job_id = str(33 + 8 * len(gone))
        folders[0].submitted(job_id)
        return [job_id]

    monkeypatch.setattr(jobs, "submit", submit)
    monkeypatch.setattr(jobs, "cancel", gone.append)
    root, path = root_of(tmp_path), tmp_path / "ppo" / "run"
    assert jobs._job(path, "ppo", root, SMALL, ["31", "32"], {}) == "33"
    queue = {"31": "RUNNING", "33": "PENDING", "40": "PENDING"}
    found = jobs._job(path, "ppo", root, SMALL, after, queue)
    assert gone == cancelled
    assert found == ("41" if cancelled else "33")
