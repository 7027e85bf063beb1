"""Shape types are checked in tests only: hook the functions before anything imports them."""

import os

from jaxtyping import install_import_hook

# the numeric tower: an int is a float to Python's typing rules, and so to a caller
install_import_hook(
    "rlhf_lightning.functional",
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)
# as the processes that tests start: numbers depend on it, and OpenMP reads it once
os.environ["OMP_NUM_THREADS"] = "1"

import shutil  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def finished_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`outputs/` after one whole pipeline at debug size, for everyone: to be read and copied, never added to."""
    from tests.harness import rlhf_here

    outputs = tmp_path_factory.mktemp("pipeline") / "outputs"
    rlhf_here(f"outputs={outputs}")
    return outputs


@pytest.fixture
def began_with(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The checkpoint's name of each training in this process; None: it began anew."""
    from lightning.pytorch import Trainer

    found: list[str | None] = []
    fit = Trainer.fit

    def noting(trainer: Trainer, *args: Any, ckpt_path: Path | None, **kwargs: Any) -> None:
        found.append(None if ckpt_path is None else ckpt_path.name)
        fit(trainer, *args, ckpt_path=ckpt_path, **kwargs)

    monkeypatch.setattr(Trainer, "fit", noting)
    return found


@pytest.fixture
def pipeline_outputs(finished_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished pipeline's `outputs/`, in a copy of the test's own."""
    copy = tmp_path_factory.mktemp("own") / "outputs"
    return shutil.copytree(finished_pipeline, copy, symlinks=True)
