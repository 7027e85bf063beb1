"""Jobs for the tests: small ones, disturbed in several ways."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_lightning import compose
from rlhf_lightning.config import RootConfig, SlurmConfig
from rlhf_lightning.jobs import Request, launch
from rlhf_lightning.slurm.cluster import job_facts
from rlhf_lightning.slurm.folder import JobFolder, Outcome
from rlhf_lightning.slurm.submit import submit
from rlhf_lightning.slurm.waiting import wait_for
from tests.harness import ROOT

FAKE = [sys.executable, str(ROOT / "tests" / "slurm" / "fake_rlhf.py")]
SMALL = SlurmConfig(
    gpus_per_node=0, cpus_per_task=1, mem_gb=0.2, time_min=10, signal_before_s=30, command=FAKE
)
SFT = ["experiment=debug", "task=sft", "sft.init.policy=none"]


def root_of(outputs: Path, *overrides: str) -> RootConfig:
    return compose.check(compose.compose([*SFT, f"outputs={outputs}", *overrides]))


def submitted(outputs: Path, *overrides: str, **settings: Any) -> JobFolder:
    """One job, in the queue."""
    root, given = root_of(outputs, *overrides), replace(SMALL, **settings)
    folder = Request(0, root, list(overrides)).folder()
    config = compose.saved_config(root)
    limit, command = given.max_requeues, given.command
    folder.prepare(config, name="test", max_requeues=limit, command=command)
    submit([folder], given, name="test", key="test")
    return folder


def ended(folder: JobFolder) -> Outcome:
    """The job, waited for."""
    ((_, outcome),) = wait_for([folder])
    return outcome


def until(condition: Callable[[], Any], what: str, timeout: float = 1200) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.1)


def text(folder: JobFolder) -> str:
    return folder.log.read_text() if folder.log.exists() else ""


def until_said(folder: JobFolder, words: str, times: int = 1) -> None:
    """Until the job's log has some words so many times."""
    until(lambda: text(folder).count(words) >= times, f"{words!r} in {folder.log}")


def node_of(folder: JobFolder) -> str:
    assert folder.job_id is not None
    return job_facts(folder.job_id)["NodeList"]


def slurm(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def state_of(job: str) -> str:
    """As the accounting has it; without accounting as the controller remembers it."""
    return job_facts(job)["JobState"]


__all__ = ["FAKE", "SFT", "SMALL", "launch"]
