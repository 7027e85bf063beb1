"""The chain of stages, and of rounds: plan, claim, run or reuse, report.

Every stage's run lives where its identity says; a pipeline is a run of its own that links to them.
"""

from __future__ import annotations

import importlib
import logging
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_lightning.binding import require_logger_packages, require_strategy_package
from rlhf_lightning.compose import build, config_flags, saved_config
from rlhf_lightning.config import PipelineConfig, RootConfig
from rlhf_lightning.data.mixture import Mixture
from rlhf_lightning.data.needs import require_records
from rlhf_lightning.errors import UserError
from rlhf_lightning.foreign import edited_since
from rlhf_lightning.launch.stage import generate_in_processes, stage_in_processes
from rlhf_lightning.parents import artifact, missing_parents, state, with_finished_parents
from rlhf_lightning.plan import Planner, StagePlan, require_model_folder, stage_name
from rlhf_lightning.runs import (
    Run,
    Stop,
    claim,
    graceful_signals,
    mark_latest,
    nearest,
    run_hash,
    run_name,
    run_path,
)
from rlhf_lightning.sweeps.child import announce

log = logging.getLogger("rlhf_lightning")

SHOWN_KEYS = 6
"""Settings that `dry_run` names where a run differs from the nearest one."""

WITHOUT_RUN = ("generate", "data")
"""Tasks that leave a file and no run: nothing to own, to continue or to reuse."""


@dataclass(frozen=True)
class Prepared:
    """A command whose config, data, parents and places are checked; nothing is written yet."""

    root: RootConfig
    plans: list[StagePlan]
    """The stages in the order in which they run; one where the task is one stage."""
    mixture: Mixture

    @property
    def path(self) -> Path | None:
        """The directory of the run that the command is about; None for a task without one."""
        if self.root.task == "pipeline":
            return pipeline_path(self.root, self.plans)
        return None if self.root.task in WITHOUT_RUN else self.plans[0].path


def prepare(root: RootConfig) -> Prepared:
    """Plan what `task` says. Raises: UserError where the input is bad."""
    require_logger_packages(root.logger)
    require_strategy_package(root.strategy)
    require_model_folder(root.model, "model.path")
    if root.reward.model is not None:
        require_model_folder(root.reward.model, "reward.model.path")
    mixture = Mixture(root.mix, root.seed)
    folder = Path(root.run_dir) if root.run_dir and root.task == "pipeline" else None
    planner = Planner(root, mixture.identity(), folder)
    plans = planner.pipeline() if root.task == "pipeline" else [planner.stage(root.task)]
    plans = [plan if state(plan) == "reused" else _checked(plan, mixture) for plan in plans]
    return Prepared(root, plans, mixture)


def run_task(root: RootConfig, *, overrides: Sequence[str]) -> dict[str, float]:
    """Do what `task` says; returns the metrics of its run.

    Raises: UserError before anything is written where the input is bad; RunFailed; Interrupted.
    """
    given, root = root.pipeline, replace(root, pipeline=local(root.pipeline))
    ready = prepare(root)
    plans, mixture = ready.plans, ready.mixture
    if given.only is not None:
        plans = [_only(plans, given.only)]
    if root.dry_run:
        return explain(root, plans, overrides)
    if given.launch == "slurm":
        from rlhf_lightning.jobs import submit_pipeline

        submit_pipeline(ready, {_place(plan): plan for plan in plans}, given.slurm)
        return {}
    with graceful_signals() as stop:
        if root.task == "pipeline" and given.only is None:
            return run_pipeline(root, plans, mixture, stop, overrides)
        return run_alone(plans[0], mixture, stop, overrides)


def local(pipeline: PipelineConfig) -> PipelineConfig:
    """The chain itself, without who runs which part of it: what a run's config says, wherever it was made."""
    return PipelineConfig(rounds=pipeline.rounds)


def _only(plans: Sequence[StagePlan], name: str) -> StagePlan:
    places = {_place(plan): plan for plan in plans}
    if name not in places:
        raise UserError(f"pipeline.only must be one of {', '.join(places)}, got {name!r}")
    return places[name]


def explain(
    root: RootConfig, plans: Sequence[StagePlan], overrides: Sequence[str]
) -> dict[str, float]:
    """`dry_run=true`: whether each stage is reused, continued, new or refused; what differs from the nearest run."""
    planned = {plan.path for plan in plans}
    for plan in plans:
        for missing in (parent for parent in missing_parents(plan) if parent.path not in planned):
            print(f"{missing.label:<18} {'missing':<10} {_command(missing, overrides)}")
        print(f"{plan.label:<18} {state(plan):<10} {plan.path}")
        if state(plan) == "new":
            found = nearest(root.outputs, plan.task, plan.identity)
            if found is not None:
                run, keys = found
                shown = "; ".join(str(difference) for difference in keys[:SHOWN_KEYS])
                if len(keys) > SHOWN_KEYS:
                    shown += f"; and {len(keys) - SHOWN_KEYS} more"
                how = f"which differs in {shown}" if keys else "which is the same at another place"
                print(f"{'':<18} {'':<10} nearest is {run.path.name}, {how}")
    return {}


def _checked(plan: StagePlan, mixture: Mixture) -> StagePlan:
    """The plan of a stage that will run, its finished parents verified.

    Raises: UserError if the mix lacks what it reads, a parent is not as it was written, or parents do not fit together.
    """
    require_records(mixture, plan.root, plan.task)
    return with_finished_parents(plan)


def run_alone(
    plan: StagePlan, mixture: Mixture, stop: Stop, overrides: Sequence[str]
) -> dict[str, float]:
    """One stage; its parents must be there."""
    require_parents(plan, overrides)
    if plan.task in WITHOUT_RUN:
        if plan.task == "generate" and plan.root.strategy.name != "single":
            parents = {role: artifact(plan, role) for role in plan.parents}
            config = saved_config(replace(plan.root, task=plan.task))
            return generate_in_processes(plan, parents, config_yaml=config, stop=stop)
        # their parents are there, so they are artifacts by now
        return importlib.import_module(f"rlhf_lightning.tasks.{plan.task}").run(plan, mixture, stop)
    announce(plan.path)
    run = run_stage(plan, mixture, stop, overrides)
    _mark_latest(plan.root.outputs, run.path)
    return run.metrics


def require_parents(plan: StagePlan, overrides: Sequence[str]) -> None:
    """Raises: UserError with the command that makes the parent that is missing."""
    for parent in missing_parents(plan):
        raise UserError(
            f"task={plan.task} needs the run of {parent.label} first, got none that is finished at"
            f" {str(parent.path)!r}; run: {_command(parent, overrides)}"
        )


def _mark_latest(outputs: str, path: Path) -> None:
    try:
        mark_latest(outputs, path)
    except (OSError, UserError) as error:  # the run itself is complete
        log.warning("outputs/latest is not set: %s", error)


def _command(plan: StagePlan, overrides: Sequence[str]) -> str:
    dropped = ("task=", "run_dir=", "dry_run=", "reward_source.member=")
    dropped += ("input=", "output=", "prompt=", "pipeline.only=", "pipeline.launch=")
    kept = [item for item in overrides if not item.startswith(dropped)]
    first = stage_name(plan.task, 1)
    # what only the chain knows: a later round, a member, a stage of the reward model's size
    task = (
        [f"task={plan.task}"]
        if _place(plan) == first
        else ["task=pipeline", f"pipeline.only={_place(plan)}"]
    )
    return shlex.join(["rlhf", *config_flags(), *task, *kept])


def _say_finished(label: str, run: Run, plans: Sequence[StagePlan]) -> None:
    log.info("%s: finished already, %s", label, run.path)
    moment = run.metrics_json.stat().st_mtime
    for file in dict.fromkeys(f for plan in plans for f in edited_since(plan.identity, moment)):
        log.warning(
            "%s: %s was changed after this run had finished; code does not name a run, so another args, name or run_dir"
            " trains with it, or the old run's removal",
            label,
            file,
        )


def run_stage(plan: StagePlan, mixture: Mixture, stop: Stop, overrides: Sequence[str]) -> Run:
    """Claim the stage's run and do its task, unless it is finished already."""
    root = replace(plan.root, task=plan.task, run_dir=str(plan.folder) if plan.folder else None)
    with _claimed(plan.path, plan.task, plan.name, root, plan.identity, overrides, stop) as run:
        if run.finished:
            _say_finished(plan.label, run, [plan])
            return run
        log.info("%s: %s %s", plan.label, "continues" if run.continued else "new,", run.path)
        with _log_file(run.log):
            metrics = _do(plan, root, run, mixture, stop)
            if plan.task == "evaluate":
                _report(run, root, [plan], {"evaluate": run}, metrics)
            run.finish(metrics)
    return run


def _do(
    plan: StagePlan, root: RootConfig, run: Run, mixture: Mixture, stop: Stop
) -> dict[str, float]:
    """The task itself, with its parents verified: here, or in processes of its own."""
    parents = {role: artifact(plan, role) for role in plan.parents}
    if root.strategy.name == "single":
        # everything above answers without torch; from here on weights are loaded
        from rlhf_lightning.tasks.perform import perform

        before = run.duration_s
        return perform(
            plan.task, plan.round, root, run, parents, mixture, stop, build, before_s=before
        )
    return stage_in_processes(plan, root, run, parents, config_yaml=saved_config(root), stop=stop)


@contextmanager
def _claimed(
    path: Path,
    task: str,
    name: str,
    root: RootConfig,
    identity: Mapping[str, Any],
    overrides: Sequence[str],
    stop: Stop,
) -> Iterator[Run]:
    # a place that the identity determines is shared, so whoever needs it waits; one that the user gave is not
    with claim(
        path,
        task=task,
        name=name,
        seed=root.seed,
        identity=identity,
        config_yaml=saved_config(root),
        overrides=overrides,
        wait=root.run_dir is None,
        say=log.warning,
        key="run_dir" if root.run_dir else "outputs",
        stop=stop,
    ) as run:
        yield run


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Everything that is logged meanwhile, in log.txt too."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _pipeline_identity(root: RootConfig, plans: Sequence[StagePlan]) -> dict[str, Any]:
    return {
        "pipeline": {"rounds": root.pipeline.rounds},
        "stages": {_place(plan): run_hash(plan.identity) for plan in plans},
    }


def pipeline_path(root: RootConfig, plans: Sequence[StagePlan]) -> Path:
    """Where the run of the whole chain lies."""
    if root.run_dir:
        return Path(root.run_dir)
    name = run_name(root.model.name, root.mix.name, root.seed)
    return run_path(root.outputs, "pipeline", name, _pipeline_identity(root, plans))


def run_pipeline(
    root: RootConfig,
    plans: Sequence[StagePlan],
    mixture: Mixture,
    stop: Stop,
    overrides: Sequence[str],
) -> dict[str, float]:
    """All stages in order, each reused where it is finished; then the report."""
    identity = _pipeline_identity(root, plans)
    name = run_name(root.model.name, root.mix.name, root.seed)
    path = pipeline_path(root, plans)
    announce(path)
    with ExitStack() as stack:
        run = stack.enter_context(_claimed(path, "pipeline", name, root, identity, overrides, stop))
        if run.finished:
            _say_finished("pipeline", run, plans)
            _mark_latest(root.outputs, run.path)
            return run.metrics
        stack.enter_context(_log_file(run.log))
        stages: dict[str, Run] = {}
        for plan in plans:
            try:
                stages[_place(plan)] = run_stage(plan, mixture, stop, overrides)
            finally:  # a stage that ended early has its curves too
                if plan.path.is_dir():
                    run.link(plan.path, _place(plan))
        # a second SFT, of the reward model's size, is not `sft`
        metrics = {
            k: v
            for plan in plans
            if _place(plan) == stage_name(plan.task, plan.round)
            for k, v in stages[_place(plan)].metrics.items()
        }
        _report(run, root, plans, stages, metrics)
        run.finish(metrics)
    _mark_latest(root.outputs, run.path)
    log.info("pipeline: finished, %s", run.report)
    return metrics


def _report(
    run: Run,
    root: RootConfig,
    plans: Sequence[StagePlan],
    stages: Mapping[str, Run],
    metrics: Mapping[str, float | None],
) -> None:
    """report.html, without the numbers that are not finite."""
    from rlhf_lightning.tasks.report import write_run_report

    finite = {name: v for name, v in metrics.items() if v is not None and math.isfinite(v)}
    write_run_report(run, root, plans, stages, finite)


def _place(plan: StagePlan) -> str:
    name = stage_name(plan.task, plan.round, plan.member)
    size = plan.root.reward.model
    other = size is not None and plan.root.model is size and plan.task != "reward"
    return f"{name}-{plan.root.model.name}" if other else name
