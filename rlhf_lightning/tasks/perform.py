"""One stage's task, in a process that is one of several or the only one."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from rlhf_lightning.callbacks.log import closing, log_hparams
from rlhf_lightning.config import STAGES, RootConfig
from rlhf_lightning.data.mixture import Mixture
from rlhf_lightning.runs import Artifact, Run, Stop
from rlhf_lightning.tasks.job import Job

TASK_MODULES = {
    "pretrain": "sft",
    "sft": "sft",
    "reward": "reward",
    "ppo": "ppo",
    "evaluate": "evaluate",
}
"""Task → module of rlhf_lightning.tasks; imported when it is its turn."""


def perform(
    task: str,
    round_: int,
    root: RootConfig,
    run: Run,
    parents: Mapping[str, Artifact],
    mixture: Mixture,
    stop: Stop,
    build: Callable[..., Any],
    *,
    before_s: float,
) -> dict[str, float]:
    """Set the seeds, do the task, log its settings beside its numbers; returns the metrics.

    `before_s`: seconds that the run has taken so far, in earlier processes too.
    """
    start = time.monotonic()
    module = importlib.import_module(f"rlhf_lightning.tasks.{TASK_MODULES[task]}")
    job: Job = Job(task, round_, root, run, parents, mixture, stop, build)
    if task in STAGES:
        job.require_buildable()
    job.seed_everything()
    with closing(job.loggers):
        metrics: dict[str, float] = module.run(job)
        metrics[f"time/{task}_s"] = before_s + time.monotonic() - start
        hparams = {task: asdict(getattr(root, task)), "seed": root.seed, "model": root.model.name}
        log_hparams(job.loggers, hparams, metrics)
    return metrics
