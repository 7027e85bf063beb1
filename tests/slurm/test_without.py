"""Where SLURM is not: one line that says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.slurm.cluster import require_slurm
from tests.harness import rlhf


def test_a_launcher_without_slurm_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    done = rlhf(tmp_path, "-m", "hydra/launcher=slurm", "seed=0,1", timeout=200)
    assert done.returncode == 2
    line = "error: hydra/launcher=slurm must be used where SLURM's commands are, got no sinfo on the PATH"
    assert done.stderr.splitlines() == [line]
    done = rlhf(tmp_path, "pipeline.launch=slurm", timeout=200)
    assert done.returncode == 2
    line = "error: pipeline.launch=slurm must be used where SLURM's commands are, got no sinfo on the PATH"
    assert done.stderr.splitlines()[-1] == line
    assert not (tmp_path / "outputs").exists()


def test_a_launcher_needs_a_multirun(tmp_path: Path) -> None:
    done = rlhf(tmp_path, "hydra/launcher=slurm", timeout=200)
    assert done.returncode == 2
    line = "error: hydra/launcher=slurm must be used with -m, got a single run, which has none"
    assert done.stderr.splitlines() == [line]


def test_a_slurm_that_does_not_answer_is_said_with_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sinfo", "sbatch", "squeue", "scontrol"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'error: no controller' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(UserError) as error:
        require_slurm("x")
    assert (
        str(error.value) == "x must be used where SLURM answers, got: sinfo: error: no controller"
    )
