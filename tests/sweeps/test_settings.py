"""Settings and constraints: what is refused names its key, and nothing is evaluated."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml

from rlhf_lightning.compose import conf_dir
from rlhf_lightning.errors import UserError
from rlhf_lightning.sweeps.comparisons import parse
from rlhf_lightning.sweeps.pruning import make_pruner
from rlhf_lightning.sweeps.samplers import make_sampler, seed_of
from rlhf_lightning.sweeps.settings import (
    PRUNERS,
    SAMPLERS,
    PrunerSettings,
    SamplerSettings,
    SweepSettings,
    settings_from,
)


def test_the_config_file_and_the_schema_have_the_same_keys_and_defaults() -> None:
    file = conf_dir() / "hydra" / "sweeper" / "optuna.yaml"
    tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    tree.pop("_target_")
    assert settings_from(tree) == SweepSettings()
    assert set(tree) == set(vars(SweepSettings()))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"n_trails": 3}, "hydra.sweeper.n_trails must be one of"),
        ({"sampler": {"sed": 3}}, "hydra.sweeper.sampler.sed must be one of name, seed, args"),
        ({"sampler": {"name": "tpo"}}, "hydra.sweeper.sampler.name must be one of tpe"),
        ({"n_trials": 0}, "hydra.sweeper.n_trials must be an integer >= 1"),
        ({"n_trials": None}, "hydra.sweeper.n_trials must be an integer >= 1"),
        ({"n_jobs": True}, "hydra.sweeper.n_jobs must be"),
        ({"directions": ["up"]}, "hydra.sweeper.directions must be maximize or minimize, got 'up'"),
        ({"objectives": ["a", "b"]}, "hydra.sweeper.directions must be one for each"),
        ({"max_failure_rate": 2}, "hydra.sweeper.max_failure_rate must be a share"),
        ({"retry_failed": -1}, "hydra.sweeper.retry_failed must be"),
        ({"pruner": {"name": "median"}}, "hydra.sweeper.pruner.metric must be given"),
        ({"rules": {"kl_budget": "much"}}, "hydra.sweeper.rules.kl_budget must be a number"),
        (
            {
                "objectives": ["a", "b"],
                "directions": ["maximize", "minimize"],
                "pruner": {"name": "median", "metric": "a"},
            },
            "hydra.sweeper.pruner.name must be none where there are several objectives",
        ),
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_key(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        settings_from(tree)
    assert message in str(error.value)


def test_null_is_none_of_them() -> None:
    found = settings_from({"constraints": None, "params": None, "rules": None})
    assert found.constraints == [] and found.params == {}
    with pytest.raises(UserError, match=r"hydra\.sweeper\.objectives must be one metric or more"):
        settings_from({"objectives": None})


def test_a_single_objective_may_be_text() -> None:
    settings = settings_from({"objectives": "ppo/kl_k1", "directions": "minimize"})
    assert (settings.objectives, settings.directions) == (["ppo/kl_k1"], ["minimize"])


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        (["ppo/reward_score"], True),
        (["ppo/gold_score"], False),
        (["ppo/reward_score", "ppo/kl_k1"], False),
    ],
)
def test_the_learned_score_alone_is_noticed(objectives: list[str], *, expected: bool) -> None:
    settings = SweepSettings(objectives=objectives, directions=["maximize"] * len(objectives))
    assert settings.learned_score_only is expected


@pytest.mark.parametrize(
    ("text", "value", "violation"),
    [
        ("ppo/kl_k1 <= 10", 12.0, 2.0),
        ("ppo/kl_k1<=10", 9.0, -1.0),
        ("ppo/kl_k1 <= 10", 10.0, 0.0),
        ("ppo/kl_k1 >= 10", 12.0, -2.0),
        ("ppo/kl_k1 > -1.5e1", -16.0, 1.0),
        ("ppo/kl_k1 <= 10", None, math.inf),
        ("ppo/kl_k1 <= 10", math.nan, math.inf),
        ("sft/kl_k1 <= 10", 1.0, math.inf),
    ],
)
def test_a_comparison_says_how_far_it_is_broken(
    text: str, value: float | None, violation: float
) -> None:
    assert parse(text).violation({"ppo/kl_k1": value}) == violation


def test_a_strict_comparison_is_broken_by_equality() -> None:
    assert parse("a < 1").violation({"a": 1.0}) > 0
    assert parse("a > 1").violation({"a": 1.0}) > 0
    assert parse("a < 1").violation({"a": 0.5}) < 0


@pytest.mark.parametrize(
    "text",
    ["", "a", "a <= b", "a == 1", "__import__('os').system('x') <= 1", "1 <= a", "a <= 1; b", 3],
)
def test_what_is_no_comparison_is_refused(text: Any) -> None:
    with pytest.raises(UserError, match=r"^hydra\.sweeper\.constraints must be comparisons"):
        parse(text)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_can_be_made_and_refuses_unknown_arguments(name: str) -> None:
    if name == "cmaes":
        pytest.importorskip("cmaes", reason="the package cmaes is not installed")
    make_sampler(SamplerSettings(name), 3)
    with pytest.raises(UserError, match=r"^hydra\.sweeper\.sampler\.args\.nope must be one of"):
        make_sampler(SamplerSettings(name, args={"nope": 1}), 3)


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_can_be_made_and_refuses_unknown_arguments(name: str) -> None:
    metric = None if name == "none" else "val/gold_score"
    args = {"patience": 2} if name == "patience" else {}
    make_pruner(PrunerSettings(name, metric, args=args))
    if name == "none":  # switched off on the command line, over a file's arguments
        make_pruner(PrunerSettings(name, args={"n_startup_trials": 4}))
        return
    with pytest.raises(UserError, match=r"^hydra\.sweeper\.pruner\.args\.nope must be one of"):
        make_pruner(PrunerSettings(name, metric, args={"nope": 1}))


def test_each_trial_has_a_seed_of_its_own() -> None:
    assert len({seed_of(seed, number) for seed in range(3) for number in range(50)}) == 150
