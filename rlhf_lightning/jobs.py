"""Commands as SLURM jobs: a multirun as one array, the stages of a pipeline as jobs that wait for each other.

Everything that can be known is checked before the first job is submitted, on the machine where the command was typed.
What is finished is not submitted, and what is in the queue already is not submitted twice.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.compose import saved_config
from rlhf_lightning.config import PipelineSlurmConfig, RootConfig, SlurmConfig
from rlhf_lightning.config.slurm import REPORT
from rlhf_lightning.errors import RunFailed, UserError
from rlhf_lightning.parents import state
from rlhf_lightning.plan import StagePlan
from rlhf_lightning.runs import run_name
from rlhf_lightning.runs.files import read_json
from rlhf_lightning.runs.lease import Lease
from rlhf_lightning.slurm.cluster import NoAnswer, cancel, queued, require_slurm
from rlhf_lightning.slurm.folder import FINISHED, JobFolder, Outcome, batch_log, job_folder
from rlhf_lightning.slurm.submit import require_script, require_submitit, submit
from rlhf_lightning.slurm.waiting import final, wait_for

if TYPE_CHECKING:
    from rlhf_lightning.pipeline import Prepared

log = logging.getLogger("rlhf_lightning")

LAUNCHER = "hydra.launcher"
PIPELINE = "pipeline.slurm"


@dataclass(frozen=True)
class Request:
    """One job of a multirun."""

    index: int
    root: RootConfig
    overrides: list[str]

    def folder(self) -> JobFolder:
        """Where its job lives: the same for the same command in the same place."""
        name = run_name(self.root.model.name, self.root.mix.name, self.root.seed)
        key = f"{Path.cwd()}\n{saved_config(self.root)}"
        return job_folder(self.root.outputs, f"{self.root.task}-{name}", key)


Result = tuple[Request, "dict[str, Any] | None", "Exception | None"]
"""A request with its metrics, or with what went wrong."""


def launch(requests: Sequence[Request], settings: SlurmConfig) -> Iterator[Result]:
    """Submit the jobs and wait; yields each when it has ended.

    Raises: UserError where the cluster cannot be used, RunFailed where sbatch refuses.
    """
    require_slurm("hydra/launcher=slurm")
    require_submitit("hydra/launcher=slurm")
    require_script(settings, LAUNCHER)
    wanted: dict[Path, tuple[JobFolder, list[Request]]] = {}
    for request in requests:
        try:
            done = _finished(request, settings)
        except Exception as error:
            yield request, None, error
            continue
        if done is not None:
            log.info("%s: finished already, %s", " ".join(request.overrides), done)
            yield request, _metrics(done), None
            continue
        folder = request.folder()
        wanted.setdefault(folder.path, (folder, []))[1].append(request)
    if wanted:
        yield from _run(list(wanted.values()), settings)


def _finished(request: Request, settings: SlurmConfig) -> Path | None:
    """The run of a request where nothing is left to do. Raises: UserError where the request cannot run."""
    from rlhf_lightning.pipeline import prepare, require_parents

    root = request.root
    if root.pipeline.launch == "slurm":
        raise UserError("pipeline.launch must be local where hydra/launcher=slurm, got 'slurm'")
    require_processes(root, settings, LAUNCHER)
    if root.task == "runs":
        return None
    ready = prepare(root)
    _refuse_others(ready)
    if root.task != "pipeline":
        require_parents(ready.plans[0], request.overrides)
    path = ready.path
    finished = path is not None and read_json(path / "metrics.json").get("status") == "finished"
    return path if finished and root.pipeline.only is None else None


def _run(
    wanted: Sequence[tuple[JobFolder, list[Request]]], settings: SlurmConfig
) -> Iterator[Result]:
    folders = [folder for folder, _ in wanted]
    with _alone(folders[0].path.parent):
        there = _queued()
        # a job that has ended is listed a while longer
        new = [f for f in folders if f.job_id not in there or final(f) is not None]
        for folder, requests in wanted:
            if folder in new:
                config = saved_config(requests[0].root)
                _prepare(folder, config, folder.path.name, settings)
            else:
                log.info("job %s is in the queue already: %s", folder.job_id, folder.path)
        if new:
            ids = submit(new, settings, name=f"rlhf-{wanted[0][1][0].root.task}", key=LAUNCHER)
            log.info(
                "submitted %d jobs: %s; logs: %s/*/log.txt",
                len(ids),
                " ".join(ids),
                new[0].path.parent,
            )
    try:
        for i, outcome in wait_for(folders):
            for request in wanted[i][1]:
                yield request, *_result(folders[i], outcome)
    except KeyboardInterrupt:
        ids = [folder.job_id or "?" for folder in folders]
        log.warning(
            "the jobs go on: the same command waits for them again, `scancel %s` ends them",
            " ".join(ids),
        )
        raise


def _result(folder: JobFolder, outcome: Outcome) -> tuple[dict[str, Any] | None, Exception | None]:
    if outcome.state == FINISHED:
        return (_metrics(Path(outcome.run)) if outcome.run else {}), None
    # a job that ends before it speaks (no such node's Python, a set-up script that fails) has only the batch script's
    file = folder.log if folder.log.exists() else batch_log(folder)
    where = f"job {folder.job_id}, log {file}"
    return None, RunFailed(f"{outcome.reason} ({where})")


def _metrics(run: Path) -> dict[str, Any]:
    return read_json(run / "metrics.json").get("metrics", {})


def submit_pipeline(
    ready: Prepared, places: Mapping[str, StagePlan], settings: PipelineSlurmConfig
) -> None:
    """A job for each stage that is not finished, and one that links and reports; says which and where.

    Args:
        places: name in the pipeline's directory → stage, parents first.
    Raises: UserError before anything is submitted, RunFailed where sbatch refuses.
    """
    require_slurm("pipeline.launch=slurm")
    require_submitit("pipeline.launch=slurm")
    for name in (REPORT, *(plan.task for plan in places.values())):
        key = f"{PIPELINE}.stages.{name}" if name in settings.stages else PIPELINE
        require_script(settings.of(name), key)
        if name != REPORT:
            require_processes(ready.root, settings.of(name), key)
    _refuse_others(ready)
    path, root = ready.path, ready.root
    assert path is not None
    jobs: dict[Path, str] = {}
    with _alone(job_folder(root.outputs, "x", "").path.parent):
        there = _queued()
        for place, plan in places.items():
            if state(plan) == "reused":
                _say(plan.label, "finished", plan.path)
                continue
            # a parent without a job has finished meanwhile
            parents = (p for p in plan.parents.values() if isinstance(p, StagePlan))
            after = [jobs[p.path] for p in parents if p.path in jobs]
            ours = replace(root, pipeline=replace(root.pipeline, only=place))
            jobs[plan.path] = _job(
                plan.path, plan.label, ours, settings.of(plan.task), after, there
            )
        if read_json(path / "metrics.json").get("status") == "finished":
            _say("pipeline", "finished", path)
        else:
            _job(path, "pipeline", root, settings.of(REPORT), list(jobs.values()), there)


def _job(
    path: Path,
    label: str,
    root: RootConfig,
    settings: SlurmConfig,
    after: Sequence[str],
    there: Mapping[str, str],
) -> str:
    """The id of the job that makes the run at `path`: the one in the queue, or a new one."""
    folder = job_folder(root.outputs, f"{label}-{path.name}", str(path.absolute()))
    known = folder.job_id
    # a parent that two stages share is one job
    unique = list(dict.fromkeys(after))
    if known in there and final(folder) is None:  # one that has ended is listed a while longer
        assert known is not None
        if set(unique) <= set(folder.record.get("after", [])):
            _say(label, f"job {known}", path, f" ({there[known].lower()} already)")
            return known
        # it waits for a job that failed, whose work a new one does; SLURM may be taking it out at this moment
        with suppress(NoAnswer):
            cancel(known)
    config = saved_config(root)
    _prepare(folder, config, label, settings, unique)
    (job,) = submit([folder], settings, name=f"rlhf-{label}", key=PIPELINE, after=unique)
    _say(label, f"job {job}", path, f" after {', '.join(unique)}" if unique else "")
    return job


def _prepare(
    folder: JobFolder, config: str, name: str, settings: SlurmConfig, after: Sequence[str] = ()
) -> None:
    limit, command = settings.max_requeues, settings.command
    folder.prepare(config, name=name, max_requeues=limit, command=command, after=after)


def _say(label: str, what: str, path: Path, more: str = "") -> None:
    print(f"{label:<18} {what:<10} {path}{more}")


def require_processes(root: RootConfig, settings: SlurmConfig, key: str) -> None:
    """What a job gets must be what its processes take. Raises: UserError where the numbers differ."""
    trainer: Mapping[str, Any] = root.trainer or {}
    devices = trainer.get("devices", 1)
    count = len(devices) if isinstance(devices, list) else devices
    if str(count) != str(settings.tasks_per_node):
        raise UserError(
            f"trainer.devices must be {key}.tasks_per_node={settings.tasks_per_node}, got {devices!r}"
        )
    nodes = trainer.get("num_nodes", 1)
    if nodes != settings.nodes:
        raise UserError(f"trainer.num_nodes must be {key}.nodes={settings.nodes}, got {nodes!r}")


def _refuse_others(ready: Prepared) -> None:
    """Raises: UserError where a place holds another run: the job would only find that out."""
    for plan in ready.plans:
        if state(plan) == "refused":
            raise UserError(
                f"run_dir must be empty or hold the same run, got {str(plan.path)!r}, which holds another"
            )


def _queued() -> dict[str, str]:
    try:
        return queued()
    except NoAnswer as error:
        raise RunFailed(f"SLURM must tell which jobs are in its queue, got: {error}") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One command at a time looks and submits: two would both find no job and submit two."""
    lease = Lease(folder / ".lock")
    lease.acquire(say=log.warning, key="outputs")
    try:
        yield
    finally:
        lease.release()
