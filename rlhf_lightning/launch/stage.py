"""A planned stage, done in processes of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.config import RootConfig, process_count
from rlhf_lightning.errors import Pruned, RunFailed
from rlhf_lightning.launch.orders import Orders, Outcome, described
from rlhf_lightning.launch.parent import Ranks, in_processes
from rlhf_lightning.plan import StagePlan
from rlhf_lightning.runs import Artifact, Run, Stop

FOLDER = ".processes"
"""In a run: what its processes are told and tell."""


def ranks_of(root: RootConfig) -> Ranks:
    """How many processes the settings ask for."""
    nodes = int((root.trainer or {}).get("num_nodes", 1))
    return Ranks(process_count(root.trainer) // nodes, nodes)


def stage_in_processes(
    plan: StagePlan,
    root: RootConfig,
    run: Run,
    parents: Mapping[str, Artifact],
    *,
    config_yaml: str,
    stop: Stop,
) -> dict[str, float]:
    """Do a stage whose run this process owns; returns its metrics.

    Raises: what the stage raises; RunFailed if the run is lost or a process is killed.
    """
    orders = _orders(
        plan,
        parents,
        path=str(run.path),
        identity=run.identity,
        continued=run.continued,
        duration_s=run.duration_s,
    )
    folder = run.path / FOLDER
    try:
        return in_processes(
            orders, config_yaml, ranks_of(root), folder=folder, stop=stop, watch=Watch(run)
        )
    except Pruned as error:
        outcome = Outcome.read(folder, 0)
        run.prune(str(error), outcome.metrics if outcome else None)
        raise


def generate_in_processes(
    plan: StagePlan, parents: Mapping[str, Artifact], *, config_yaml: str, stop: Stop
) -> dict[str, float]:
    """`task=generate`, which has no run: its processes are told in a temporary folder."""
    orders = _orders(
        plan, parents, path=str(plan.path), identity={}, continued=False, duration_s=0.0
    )
    ranks = ranks_of(plan.root)
    shared = Path(plan.root.outputs).absolute() if ranks.nodes > 1 else None
    if shared is not None:  # other nodes do not see this machine's temporary files
        shared.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".generate-", dir=shared))
    failed = False
    try:
        return in_processes(orders, config_yaml, ranks, folder=folder / FOLDER, stop=stop)
    except RunFailed:
        failed = True  # the folder holds what the processes said, and the message names it
        raise
    finally:
        if not failed:
            shutil.rmtree(folder, ignore_errors=True)


def _orders(plan: StagePlan, parents: Mapping[str, Artifact], **rest: Any) -> Orders:
    return Orders(
        task=plan.task,
        round=plan.round,
        name=plan.name,
        seed=plan.root.seed,
        parents=described(parents),
        **rest,
    )


class Watch:
    """While the processes of a stage work: is the run still ours, and how long has it taken?"""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._checkpoint = self._newest()

    def __call__(self) -> None:
        """Raises: RunFailed if another process has taken the run over."""
        self.run.check()
        newest = self._newest()
        if newest != self._checkpoint:
            self._checkpoint = newest
            self.run.update()

    def _newest(self) -> int:
        try:
            return (self.run.checkpoints / "last.ckpt").stat().st_mtime_ns
        except OSError:
            return 0
