"""What the tests of runs share: a claim with its settings, processes that can be killed."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.runs import Run, claim

ROOT = Path(__file__).resolve().parents[2]

PRELUDE = """
import os, sys, time
from pathlib import Path
from rlhf_lightning.runs import claim
settings = dict(task="ppo", name="nano-demo-s0", seed=0, config_yaml="a: 1", overrides=[],
                identity={"ppo": {"kl_coef": 0.05, "epochs": 4}, "seed": 0})
say = lambda text: print("SAY", text, flush=True)
"""


@pytest.fixture
def identity() -> dict[str, Any]:
    """That of every run of `open_run` and `spawn`."""
    return {"ppo": {"kl_coef": 0.05, "epochs": 4}, "seed": 0}


@pytest.fixture
def open_run(identity: dict[str, Any]) -> Callable[..., AbstractContextManager[Run]]:
    """`claim` for one identity."""
    return functools.partial(
        claim,
        task="ppo",
        name="nano-demo-s0",
        seed=0,
        identity=identity,
        config_yaml="ppo:\n  kl_coef: 0.05\n",
        overrides=["task=ppo", "ppo.kl_coef=0.05"],
    )


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python code, after `PRELUDE`, in a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def wait_for() -> Callable[[Callable[[], object]], None]:
    """Wait until something is true, at most ten seconds."""

    def wait(condition: Callable[[], object]) -> None:
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end, "it never became true"
            time.sleep(0.01)

    return wait
