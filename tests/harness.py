"""Running the real command, in this process or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_lightning import compose
from rlhf_lightning.pipeline import run_task

ROOT = Path(__file__).resolve().parents[1]


def rlhf_here(*overrides: str) -> dict[str, float]:
    """The command's work in this process; raises what the command would report."""
    root = compose.check(compose.compose(["experiment=debug", *overrides]))
    return run_task(root, overrides=list(overrides))


def start(cwd: Path, *args: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env.pop("HYDRA_FULL_ERROR", None)  # set in this process by tests that run the command here
    return subprocess.Popen(
        [sys.executable, "-m", "rlhf_lightning", *args, "experiment=debug"],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rlhf(cwd: Path, *args: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    process = start(cwd, *args)
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen[str], timeout: float = 200
) -> None:
    """Until `condition` holds; fails at once if the process ends before."""
    end = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None and not condition():  # it may have come true by its end
            raise AssertionError(f"ended early with {process.returncode}: {process.communicate()}")
        if time.monotonic() > end:
            process.kill()
            process.communicate()
            raise AssertionError("the condition never came true")
        time.sleep(0.01)


def json_lines(path: Path) -> list[Any]:
    """The rows of a JSON Lines file. A line ends at \\n alone: splitlines() breaks at marks that a model may say."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def only(folder: Path) -> Path:
    """The one entry of a folder."""
    (entry,) = folder.iterdir()
    return entry
