"""Handing jobs to SLURM, by submitit: it writes the batch script, which runs our task by srun."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_lightning.config import SlurmConfig
from rlhf_lightning.errors import RunFailed, UserError
from rlhf_lightning.interpreter import python
from rlhf_lightning.slurm.folder import SCRIPTS, JobFolder
from rlhf_lightning.slurm.task import run_folder

log = logging.getLogger("rlhf_lightning")


def _python() -> str:
    """What runs a job. A warning that comes before our handlers are there is ignored, not fatal: at the limit itself a
    job goes back too."""
    return f"""sh -c 'trap "" USR1; exec "$@"' sh {shlex.join(python())}"""


def require_submitit(key: str) -> None:
    """Raises: UserError if the package is not there."""
    try:
        import submitit  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(
            f"{key} must have submitit installed: pip install -e '.[slurm]', got no such package"
        ) from None


def require_script(settings: SlurmConfig, key: str) -> None:
    """Raises: UserError if the file that jobs source is not there."""
    script = settings.setup_script
    if script is not None and not Path(script).expanduser().is_file():
        raise UserError(f"{key}.setup_script must be a file, got {script!r}, which does not exist")


def submit(
    folders: Sequence[JobFolder],
    settings: SlurmConfig,
    *,
    name: str,
    key: str,
    after: Sequence[str] = (),
) -> list[str]:
    """Submit prepared folders, as one array where there are several; returns the ids of their jobs.

    Args:
        key: the node of the settings, for messages.
        after: ids of jobs that must have ended well before.
    Raises: RunFailed with sbatch's own words if it refuses.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    scripts = folders[0].path.parent / SCRIPTS
    scripts.mkdir(parents=True, exist_ok=True)
    # our task does the requeueing: submitit's own knows nothing of checkpoints
    executor = SlurmExecutor(folder=scripts, max_num_timeout=0, python=_python())
    executor.update_parameters(**parameters(settings, name=name, after=after))
    paths = [str(folder.path) for folder in folders]
    try:
        with _as_outside_of_a_job(settings):
            if len(paths) == 1:
                jobs: Sequence[Any] = [executor.submit(run_folder, paths[0])]
            else:
                jobs = executor.map_array(run_folder, paths)
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        words = [line for line in lines if line.startswith("sbatch:")] or lines
        raise RunFailed(f"{key}: the jobs were not submitted: {words[-1]}") from error
    ids = [str(job.job_id) for job in jobs]
    for folder, job_id in zip(folders, ids, strict=True):
        folder.submitted(job_id)
    return ids


DEFAULTS = ("partition", "account", "qos", "constraint", "reservation")
"""What a user may have in SBATCH_PARTITION and the like, and here."""
WRITTEN = "TIMELIMIT JOB_NAME REQUEUE NO_REQUEUE SIGNAL OPEN_MODE EXPORT ARRAY_INX CLUSTERS WAIT GPUS_PER_NODE"
WRITTEN += " MEM_PER_NODE MEM_PER_CPU MEM_PER_GPU"
"""Variables of sbatch, without SBATCH_, whose options every job of ours has, or may not have."""
KEPT = ("SLURM_CONF", "SLURM_JWT")


@contextmanager
def _as_outside_of_a_job(settings: SlurmConfig) -> Iterator[None]:
    """Without the variables of a job that this may be in: sbatch would take them over, and its own before ours."""
    given = [name.upper() for name in DEFAULTS if getattr(settings, name) is not None]
    ours = {f"SBATCH_{name}" for name in (*given, *WRITTEN.split())}
    taken = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name in ours or name.startswith(("SLURM_", "SRUN_", "SUBMITIT_"))
        if name not in KEPT
    }
    ignored = sorted(ours & taken.keys())
    if ignored:
        log.warning("%s: not handed on, the settings of slurm say it", ", ".join(ignored))
    try:
        yield
    finally:
        os.environ.update(taken)


def parameters(settings: SlurmConfig, *, name: str, after: Sequence[str] = ()) -> dict[str, Any]:
    """The settings as submitit's SlurmExecutor takes them. submitit quotes every value for the script."""
    more: dict[str, Any] = {
        # USR1, not submitit's USR2: the command writes its checkpoint on it
        "signal": f"USR1@{settings.signal_before_s}",
        "requeue": True,
        **(settings.extra or {}),
    }
    if settings.reservation is not None:
        more["reservation"] = settings.reservation
    if after:
        more |= {"dependency": f"afterok:{':'.join(after)}", "kill-on-invalid-dep": "yes"}
    given: dict[str, Any] = {
        "job_name": name,
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "time": settings.time_min,
        "nodes": settings.nodes,
        "ntasks_per_node": settings.tasks_per_node,
        "gpus_per_node": settings.gpus_per_node or None,
        "cpus_per_task": settings.cpus_per_task,
        "mem": None if settings.mem_gb is None else f"{round(settings.mem_gb * 1024)}M",
        "array_parallelism": settings.max_parallel or 10_000,
    }
    if settings.setup_script is not None:
        script = Path(settings.setup_script).expanduser().resolve()
        given["setup"] = [f"source {shlex.quote(str(script))}"]
    return {
        **{key: value for key, value in given.items() if value is not None},
        "wckey": None,  # submitit has one of its own
        "additional_parameters": more,
        "srun_args": [
            # one process, which starts a strategy's others: as its children, or on all nodes by another srun, for
            # which --overlap leaves the resources
            *("--nodes=1", "--ntasks=1", "--overlap"),
            # since 22.05 srun does not take this over from sbatch
            f"--cpus-per-task={settings.cpus_per_task * settings.tasks_per_node}",
        ],
    }
