"""The settings of the Optuna sweeper: conf/hydra/sweeper/optuna.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from rlhf_lightning.errors import UserError

SAMPLERS = ("tpe", "cmaes", "nsga2", "random", "grid")
PRUNERS = ("none", "median", "successive_halving", "hyperband", "patience")
DIRECTIONS = ("maximize", "minimize")
LEARNED_SCORE = "reward_score"
"""Last part of the names of metrics that the policy was trained to raise."""


def _require(ok: bool, key: str, rule: str, got: object) -> None:
    if not ok:
        raise UserError(f"hydra.sweeper.{key} must be {rule}, got {got!r}")


@dataclass
class SamplerSettings:
    """How the next parameters are chosen."""

    name: str = "tpe"
    """tpe | cmaes | nsga2 | random | grid (every combination, in an order that the seed shuffles)."""
    seed: int = 0
    """Trial k draws with (seed, k): the same in whichever process it runs."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of Optuna's class."""

    def __post_init__(self) -> None:
        _require(self.name in SAMPLERS, "sampler.name", f"one of {', '.join(SAMPLERS)}", self.name)
        _require(_is_count(self.seed, 0), "sampler.seed", "an integer >= 0", self.seed)


@dataclass
class PrunerSettings:
    """Which trials are given up while they run, by comparing them with others or with themselves."""

    name: str = "none"
    """none | median | successive_halving | hyperband | patience."""
    metric: str | None = None
    """The metric of a validation that is compared, as metrics.csv names it."""
    direction: str | None = None
    """maximize | minimize; null: that of the objective. Of the other direction, the study holds the metric times -1."""
    args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of Optuna's class."""

    def __post_init__(self) -> None:
        _require(self.name in PRUNERS, "pruner.name", f"one of {', '.join(PRUNERS)}", self.name)
        known = self.direction is None or self.direction in DIRECTIONS
        _require(known, "pruner.direction", "maximize or minimize", self.direction)
        given = self.name == "none" or bool(self.metric)
        _require(given, "pruner.metric", f"given for pruner.name={self.name}", self.metric)


@dataclass
class RuleSettings:
    """Signs of a run that is lost whatever the others do; null switches a rule off.

    Metrics are those of PPO's validation on fixed prompts.
    """

    kl_budget: float | None = None
    """Prune where val/kl_k1 is above this, nats per response."""
    min_entropy: float | None = None
    """Prune where val/entropy is below this, nats per token."""
    min_eos_rate: float | None = None
    """Prune where the share of responses that end, val/eos_rate, is below this."""
    hacking_validations: int | None = None
    """Prune where val/score rose and val/gold_score fell at this many validations in a row."""
    warmup_validations: int = 1
    """Validations that no rule looks at; the first is before training."""

    @property
    def active(self) -> bool:
        """Whether any rule is on."""
        given = (self.kl_budget, self.min_entropy, self.min_eos_rate, self.hacking_validations)
        return any(value is not None for value in given)

    def __post_init__(self) -> None:
        for name in ("kl_budget", "min_entropy", "min_eos_rate"):
            value = getattr(self, name)
            _require(value is None or _is_number(value), f"rules.{name}", "a number or null", value)
        count = self.hacking_validations
        ok = count is None or _is_count(count, 1)
        _require(ok, "rules.hacking_validations", "an integer >= 1 or null", count)
        ok = _is_count(self.warmup_validations, 0)
        _require(ok, "rules.warmup_validations", "an integer >= 0", self.warmup_validations)


@dataclass
class SweepSettings:
    """All keys of hydra.sweeper with hydra/sweeper=optuna."""

    name: str | None = None
    """First part of the sweep's directory; null: the file of sweeps/, or optuna."""
    n_trials: int | None = 20
    """Trials in total, over resumes and machines, failures included; null (grid only): every combination."""
    n_jobs: int = 1
    """Trials that this command runs at once, each a process of its own."""
    objectives: list[str] = field(default_factory=lambda: ["ppo/validation/gold_score"])
    """Metrics of metrics.json. Default: on the validation split, since what is chosen by the test split is not held out
    any more."""
    directions: list[str] = field(default_factory=lambda: ["maximize"])
    """maximize | minimize, one for each objective."""
    constraints: list[str] = field(default_factory=list)
    """Comparisons that the best trial must satisfy: `ppo/validation/kl_k1 <= 10`."""
    params: dict[str, Any] = field(default_factory=dict)
    """The space: key → Hydra's sweep syntax. The command line replaces keys."""
    custom_space: str | None = None
    """Importable function (optuna trial → list of overrides, or key → value) for spaces with conditions."""
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    pruner: PrunerSettings = field(default_factory=PrunerSettings)
    rules: RuleSettings = field(default_factory=RuleSettings)
    storage: str | None = None
    """Database URL (sqlite:///..., postgresql://...); null: a journal file in the sweep's directory."""
    max_failure_rate: float = 0.5
    """No further trial starts once more than this share of n_trials has failed."""
    retry_failed: int = 0
    """How often a failed trial is run again, from its last checkpoint. Beyond n_trials."""
    command: list[str] | None = None
    """What runs a trial; the config follows. null: this Python's `-m rlhf_lightning`."""

    def __post_init__(self) -> None:
        grid = self.sampler.name == "grid"
        ok = _is_count(self.n_trials, 1) or (self.n_trials is None and grid)
        _require(ok, "n_trials", "an integer >= 1 (null for sampler.name=grid)", self.n_trials)
        _require(_is_count(self.n_jobs, 1), "n_jobs", "an integer >= 1", self.n_jobs)
        _require(len(self.objectives) >= 1, "objectives", "one metric or more", self.objectives)
        matched = len(self.directions) == len(self.objectives)
        _require(matched, "directions", "one for each of objectives", self.directions)
        for direction in self.directions:
            _require(direction in DIRECTIONS, "directions", "maximize or minimize", direction)
        rate = self.max_failure_rate
        ok = _is_number(rate) and 0 <= rate <= 1
        _require(ok, "max_failure_rate", "a share from 0 to 1", rate)
        ok = _is_count(self.retry_failed, 0)
        _require(ok, "retry_failed", "an integer >= 0", self.retry_failed)
        several = len(self.objectives) > 1
        _require(
            not (several and self.pruner.name != "none"),
            "pruner.name",
            "none where there are several objectives (rules still apply)",
            self.pruner.name,
        )
        one = not (several and self.sampler.name == "cmaes")
        _require(one, "sampler.name", "another than cmaes for several objectives", "cmaes")

    @property
    def learned_score_only(self) -> bool:
        """Whether the search is told of nothing but what the policy was trained on."""
        return all(name.split("/")[-1] == LEARNED_SCORE for name in self.objectives)


def settings_from(tree: Mapping[str, Any]) -> SweepSettings:
    """Checked settings of a plain tree.

    Raises: UserError that names the key.
    """
    nested = {"sampler": SamplerSettings, "pruner": PrunerSettings, "rules": RuleSettings}
    values: dict[str, Any] = dict(tree)
    for key, kind in nested.items():
        values[key] = _made(kind, values.get(key) or {}, f"{key}.")
    for key in ("objectives", "directions", "constraints"):
        if isinstance(values.get(key), str):
            values[key] = [values[key]]
        elif key in values and values[key] is None:
            values[key] = []
    if "params" in values:
        values["params"] = values["params"] or {}
    return _made(SweepSettings, values, "")


def _made(kind: Any, values: Any, prefix: str) -> Any:
    name = prefix.rstrip(".")
    _require(isinstance(values, Mapping), name, "a group of settings", values)
    known = [f.name for f in fields(kind)]
    for key in values:
        _require(key in known, f"{prefix}{key}", f"one of {', '.join(known)}", "an unknown key")
    # null in the file, so that the command line can set `args={...}` without a +
    return kind(**{k: {} if k == "args" and v is None else v for k, v in values.items()})


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
