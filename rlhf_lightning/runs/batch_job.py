"""The batch job that this process is part of, as SLURM tells it by environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchJob:
    """One go of a job: a job that was put back into the queue keeps its id and counts its restarts."""

    id: str
    """SLURM_JOB_ID: of an array's task too, its own."""
    restarts: int
    cluster: str | None
    array_task: str | None = None
    """`12_3`: how SLURM's commands name this task of an array alone."""

    @property
    def name(self) -> str:
        """What scontrol takes. The bare id of an array's last task is that of the whole array."""
        return self.array_task or self.id

    def follows(self, owner: Mapping[str, object]) -> bool:
        """Whether what a lease's `owner.json` names is an earlier go of this job, so surely over.

        SLURM starts a job again only when it has given up the nodes that it ran on: what still breathes there (a
        process that was cut off from the network) has lost its run and will see it.
        """
        restarts = owner.get("job_restarts")
        same = owner.get("job_id") == self.id and owner.get("job_cluster") == self.cluster
        return same and isinstance(restarts, int) and restarts < self.restarts


def batch_job(environ: Mapping[str, str] | None = None) -> BatchJob | None:
    """The job of this process; None outside of SLURM."""
    found = os.environ if environ is None else environ
    if not found.get("SLURM_JOB_ID"):
        return None
    array, task = found.get("SLURM_ARRAY_JOB_ID"), found.get("SLURM_ARRAY_TASK_ID")
    return BatchJob(
        id=found["SLURM_JOB_ID"],
        restarts=int(found.get("SLURM_RESTART_COUNT") or 0),
        cluster=found.get("SLURM_CLUSTER_NAME"),
        array_task=f"{array}_{task}" if array and task else None,
    )
