"""Hydra's sweep grammar becomes the distributions that one would write by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FixedTrial

from rlhf_lightning.errors import UserError
from rlhf_lightning.sweeps.space import Space, any_point, as_override, space_of


def parsed(*overrides: str, custom: str | None = None) -> Space:
    return space_of(OverridesParser.create().parse_overrides(list(overrides)), custom)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("interval(0.5,2)", FloatDistribution(0.5, 2.0)),
        ("tag(log,interval(0.005,0.2))", FloatDistribution(0.005, 0.2, log=True)),
        ("int(interval(1,8))", IntDistribution(1, 8)),
        ("tag(int,interval(1,8))", IntDistribution(1, 8)),
        ("tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("tag(log,int,interval(1,64))", IntDistribution(1, 64, log=True)),
        # 1, 3, 5, 7: the end of a range is no part of it
        ("range(1,9,2)", IntDistribution(1, 7, step=2)),
        ("range(4)", IntDistribution(0, 3)),
        ("range(8,2,-2)", IntDistribution(4, 8, step=2)),
        # 0.0, 0.25, 0.5, 0.75
        ("range(0,1,0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
        ("float(range(1,4))", FloatDistribution(1.0, 3.0, step=1.0)),
        ("0,0.02,0.1", CategoricalDistribution([0, 0.02, 0.1])),
        ("choice(nano,small)", CategoricalDistribution(["nano", "small"])),
        ("int(choice(1.0,2.0))", CategoricalDistribution([1, 2])),
        ("float(choice(1,2))", CategoricalDistribution([1.0, 2.0])),
        ("true,false", CategoricalDistribution([True, False])),
        ("null,a", CategoricalDistribution([None, "a"])),
        ("[1,2],[3]", CategoricalDistribution(["[1,2]", "[3]"])),
        ("'a b',c", CategoricalDistribution(["'a b'", "c"])),
    ],
)
def test_a_sweep_is_the_distribution_that_it_says(value: str, expected: BaseDistribution) -> None:
    assert parsed(f"ppo.x={value}").distributions == {"ppo.x": expected}


def test_what_has_one_value_is_fixed_and_a_later_override_replaces_an_earlier_one() -> None:
    space = parsed("ppo.kl_coef=0.1,0.2", "seed=3", "model=small", "ppo.kl_coef=0.3", "x=1,2")
    assert space.fixed == ["seed=3", "model=small", "ppo.kl_coef=0.3"]
    assert list(space.distributions) == ["x"]


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("x=tag(linear,interval(1,2))", "tags must be log or int, got linear"),
        ("x=tag(log,range(0,1,0.1))", "a logarithm has no steps"),
        ("x=tag(log,interval(0,1))", "low"),
        ("x=tag(int,interval(0.5,2))", "whole ends"),
        ("x=tag(log,choice(1,2))", "choices take no tags"),
        ("x=range(3,3)", "the range is empty"),
    ],
)
def test_a_space_that_means_nothing_is_refused_with_its_key(override: str, reason: str) -> None:
    with pytest.raises(UserError, match=r"^x must be a search space") as error:
        parsed(override)
    assert reason in str(error.value)


def test_a_search_without_anything_to_search_is_refused() -> None:
    with pytest.raises(UserError, match="something to search"):
        parsed("seed=3")


@pytest.mark.parametrize("value", [None, True, 3, 1e-07, 0.1, "nano", "'a b'", "[1,2]"])
def test_a_chosen_value_is_read_back_as_it_was(value: Any) -> None:
    (override,) = OverridesParser.create().parse_overrides([as_override("x", value)])
    expected = {"'a b'": "a b", "[1,2]": [1, 2]}.get(value, value) if value != [] else value
    assert override.value() == expected
    assert type(override.value()) is type(expected)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, 1e-07, 0.5, "nano", "a b", "a,b", "a=b", "it's", "1", "null", "", "C:\\'"),
        *("back\\", [1, "a,b"], (1, 2), {"a": 1, "b": [None]}, "ppo.yaml", "x/y.z", "Grüezi"),
    ],
)
def test_what_a_function_returns_is_read_as_it_is(value: Any) -> None:
    space = Space({}, [], custom=lambda _trial: {"x": value})
    (override,) = OverridesParser.create().parse_overrides(space.overrides(FixedTrial({})))
    assert not override.is_sweep_override()
    expected = list(value) if isinstance(value, tuple) else value
    assert override.value() == expected and type(override.value()) is type(expected)


def test_a_function_may_return_numpys_numbers() -> None:
    space = Space({}, [], custom=lambda _trial: {"x": np.sqrt(np.float64(0.25)), "y": np.int64(3)})
    assert space.overrides(FixedTrial({})) == ["x=0.5", "y=3"]


def test_a_choice_that_was_escaped_is_one_value_again() -> None:
    space = parsed(r"x=a\,b,c")
    for choice in space.distributions["x"].choices:  # type: ignore[attr-defined]
        (override,) = OverridesParser.create().parse_overrides([as_override("x", choice)])
        assert not override.is_sweep_override()
        assert override.value() in ("a,b", "c")


def test_choices_keep_their_order_so_that_the_same_command_is_the_same_sweep() -> None:
    found = {str(parsed("x=shuffle(1,2,3,4,5,6,7,8)").describe()) for _ in range(4)}
    assert found == {str(parsed("x=1,2,3,4,5,6,7,8").describe())}


def test_a_point_of_a_space_is_always_the_same() -> None:
    space = parsed("seed=1", "a=1,2", "b=interval(0,1)", custom=f"{__name__}.conditional")
    assert any_point(space) == any_point(space)
    assert any_point(space)[0] == "seed=1" and len(any_point(space)) >= 4


def conditional(trial: Any) -> dict[str, Any]:
    if trial.suggest_categorical("optimizer", ["adam", "sgd"]) == "sgd":
        return {"sft.momentum": trial.suggest_float("momentum", 0.0, 0.9), "lora": None}
    return {"sft.optimizer": "adam"}


def broken(trial: Any) -> int:
    return 3


def test_a_function_makes_conditional_spaces() -> None:
    space = parsed("seed=1", custom=f"{__name__}.conditional")
    assert space.overrides(FixedTrial({"optimizer": "sgd", "momentum": 0.5})) == [
        "seed=1",
        "sft.momentum=0.5",
        "lora=null",
    ]
    assert space.overrides(FixedTrial({"optimizer": "adam"})) == ["seed=1", "sft.optimizer=adam"]


@pytest.mark.parametrize("path", ["no.such.module", "json.nothing", "word", "json.__name__"])
def test_a_function_that_cannot_be_imported_is_refused(path: str) -> None:
    with pytest.raises(UserError, match=r"^hydra\.sweeper\.custom_space must be"):
        parsed("seed=1", custom=path)


def test_a_function_must_return_overrides() -> None:
    with pytest.raises(UserError, match="must return overrides"):
        parsed("seed=1", custom=f"{__name__}.broken").overrides(FixedTrial({}))


def test_a_grid_is_every_combination_once_shuffled_by_the_seed() -> None:
    space = parsed("a=1,2", "b=range(0,0.3,0.1)", "c=x,y")
    points = space.grid(seed=0)
    assert len(points) == 2 * 3 * 2
    assert len({tuple(point.items()) for point in points}) == 12
    assert points == space.grid(seed=0)
    assert points != space.grid(seed=1)


def test_a_grid_needs_values_that_can_be_counted() -> None:
    with pytest.raises(UserError, match=r"^a must have values that can be counted"):
        parsed("a=interval(0,1)").grid(seed=0)
