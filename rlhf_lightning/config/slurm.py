"""What a SLURM job gets: `hydra/launcher=slurm` and `pipeline.slurm`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

from rlhf_lightning.config.checks import require
from rlhf_lightning.errors import UserError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,@:+/-]*")
FEATURES = re.compile(r"[A-Za-z0-9_\[(][A-Za-z0-9_.,&|*!\[\]()-]*")
OPTION = re.compile(r"[a-z][a-z0-9-]*")
VALUE = re.compile(r"[\x20-\x7e]+")

MANAGED = (
    *("array", "chdir", "clusters", "dependency", "error", "export", "export-file", "job-name", "kill-on-invalid-dep"),
    *("no-requeue", "open-mode", "output", "parsable", "requeue", "signal", "test-only", "wait", "wrap"),
    # these have settings of their own
    *("account", "constraint", "cpus-per-task", "gpus-per-node", "mem", "nodes", "ntasks"),
    *("ntasks-per-node", "partition", "qos", "reservation", "time"),
)  # fmt: skip
"""Options of sbatch that `extra` may not hold."""

MOST_GB, MOST_SIGNAL_S = 2**20, 65535
REPORT = "report"
"""The job of a pipeline that links and draws: one process on one node, unless `stages` says more."""

JOBS = ("pretrain", "sft", "reward", "ppo", "evaluate", REPORT)


@dataclass
class SlurmConfig:
    """One job's resources, its time, and how often it is put back into the queue."""

    partition: str | None = None
    """null: the cluster's default."""
    account: str | None = None
    """Who pays; null: the user's default."""
    qos: str | None = None
    """Quality of service; null: the cluster's default."""
    constraint: str | None = None
    """Features that a node must have, as sbatch writes them: `a100|h100`."""
    reservation: str | None = None
    """null: none."""
    time_min: int = 1440
    """Time limit of one go, minutes. A run that is longer is put back and goes on: choose what the queue likes."""
    nodes: int = 1
    """Must be trainer.num_nodes."""
    tasks_per_node: int = 1
    """Processes on a node; must be trainer.devices."""
    gpus_per_node: int = 1
    """0: a job without GPUs."""
    cpus_per_task: int = 8
    """Cores for each process. habit"""
    mem_gb: float | None = None
    """Memory of each node, GB; null: the cluster's default."""
    max_parallel: int | None = None
    """Jobs of an array that run at once; null: as many as the cluster gives."""
    signal_before_s: int = 120
    """USR1 comes this long before the time limit (SLURM: up to 60 s earlier still). A training step (of PPO: a rollout
    and its epochs), a validation that is due after it and the checkpoint must fit in, or they are done again."""
    max_requeues: int = 20
    """How often a job may start again (time limit, preemption, node failure); then it ends as failed."""
    setup_script: str | None = None
    """A file that each job sources before it starts (modules, an environment)."""
    command: list[str] | None = None
    """What runs a job, `[apptainer, exec, IMAGE, rlhf]`; its config follows. null: `-m rlhf_lightning`."""
    extra: dict[str, Any] | None = None
    """Further options of sbatch without the dashes: `{exclude: node7, mail-type: END}`; true: one without a value."""

    def __post_init__(self) -> None:
        for name in ("partition", "account", "qos", "reservation"):
            value = getattr(self, name)
            ok = value is None or NAME.fullmatch(str(value)) is not None
            require(
                ok, f"slurm.{name}", "a name of letters, digits and any of _ . - , @ : + /", value
            )
        ok = self.constraint is None or FEATURES.fullmatch(self.constraint) is not None
        require(ok, "slurm.constraint", "features joined by & | , * ( ) [ ]", self.constraint)
        for name in ("time_min", "nodes", "tasks_per_node", "cpus_per_task", "signal_before_s"):
            self._check_count(name, 1)
        for name in ("gpus_per_node", "max_requeues"):
            self._check_count(name, 0)
        # SLURM reads 0 as the whole node
        ok = self.mem_gb is None or 1 / 1024 <= self.mem_gb <= MOST_GB
        require(ok, "slurm.mem_gb", f"null or in [1/1024, {MOST_GB:,}] GB", self.mem_gb)
        ok = self.max_parallel is None or self.max_parallel >= 1
        require(ok, "slurm.max_parallel", ">= 1", self.max_parallel)
        short = 0 < self.gpus_per_node < self.tasks_per_node
        rule = f"0 or >= slurm.tasks_per_node={self.tasks_per_node}"
        require(not short, "slurm.gpus_per_node", rule, self.gpus_per_node)
        most = MOST_SIGNAL_S
        require(
            self.signal_before_s <= most,
            "slurm.signal_before_s",
            f"<= {most}",
            self.signal_before_s,
        )
        limit = 60 * self.time_min
        rule = f"below slurm.time_min={self.time_min} ({limit} s)"
        ok = self.signal_before_s < limit
        require(ok, "slurm.signal_before_s", rule, self.signal_before_s)
        extra = cast("object", self.extra)  # `stages` has no types of its own
        ok = extra is None or isinstance(extra, Mapping)
        require(ok, "slurm.extra", "options of sbatch with their values", self.extra)
        for option, value in (self.extra or {}).items():
            self._check_option(option, value)

    def _check_count(self, name: str, least: int) -> None:
        # `stages` has no types of its own
        value: object = getattr(self, name)
        ok = isinstance(value, int) and not isinstance(value, bool) and value >= least
        require(ok, f"slurm.{name}", f"an integer >= {least}", value)

    def _check_option(self, option: str, value: object) -> None:
        key = f"slurm.extra.{option}"
        # sbatch also takes the beginning of an option for it, unless that is another one
        begins = any(m.startswith(option) for m in MANAGED) and option != "gpus"
        ok = OPTION.fullmatch(option) is not None and not begins
        require(ok, "slurm.extra", "options of sbatch that have no setting of their own", option)
        ok = value is True or (
            isinstance(value, int | float | str) and VALUE.fullmatch(str(value)) is not None
        )
        require(ok and value is not False, key, "true, a number or one line of text", value)


@dataclass
class PipelineSlurmConfig(SlurmConfig):
    """The same for every stage of a pipeline, but for what `stages` says."""

    stages: dict[str, Any] = field(default_factory=dict)
    """Stage (pretrain, sft, reward, ppo, evaluate, report) → settings of its jobs: `stages.ppo.time_min=2880`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        none = self.max_parallel is None
        require(none, "slurm.max_parallel", "null: stages wait for each other", self.max_parallel)
        for name in self.stages:
            require(name in JOBS, "slurm.stages", f"any of {', '.join(JOBS)}", name)
            self.of(name)

    def of(self, job: str) -> SlurmConfig:
        """What a stage's job gets. Raises: UserError with the key that is wrong."""
        known = [f.name for f in fields(SlurmConfig)]
        given: Any = self.stages.get(job, {})
        key = f"slurm.stages.{job}"
        require(isinstance(given, Mapping), key, "a group of settings", given)
        settings = cast("Mapping[str, Any]", given)
        for name in settings:
            require(name in known, f"{key}.{name}", f"one of {', '.join(known)}", "an unknown key")
        common = SlurmConfig(**{name: getattr(self, name) for name in known})
        if job == REPORT:
            common = replace(common, nodes=1, tasks_per_node=1)
        parallel = settings.get("max_parallel")
        require(
            parallel is None, f"{key}.max_parallel", "null: stages wait for each other", parallel
        )
        words: object = settings.get("command")
        ok = words is None or not isinstance(words, str)
        require(ok, f"{key}.command", "a list of words", words)
        try:
            return replace(common, **settings)
        except UserError as error:
            raise UserError(str(error).replace("slurm.", f"{key}.", 1)) from None
        except TypeError as error:
            raise UserError(
                f"{key} must have settings of their declared types, got {given!r}: {error}"
            ) from None
