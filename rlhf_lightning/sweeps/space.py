"""Hydra's sweep grammar as a search space.

`a,b`, `choice(...)`, `glob(...)` are choices; `range(start, stop, step)` is a grid without its end, as everywhere in
Hydra; `interval(a, b)` is continuous, with `int(interval(a, b))` or `tag(int, ...)` its integers, ends included.
`tag(log, ...)` searches in the logarithm. Everything else is fixed.
"""

from __future__ import annotations

import importlib
import itertools
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    RangeSweep,
    Transformer,
)

from rlhf_lightning.errors import UserError
from rlhf_lightning.sweeps.storage import quiet_optuna

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution, CategoricalChoiceType

TAGS = {"log", "int"}
LARGEST_GRID = 100_000


@dataclass(frozen=True)
class Space:
    """What is searched, and what is the same in all trials."""

    distributions: dict[str, BaseDistribution]
    """Key of an override → its values."""
    fixed: list[str]
    """Overrides."""
    custom: Callable[[Any], Any] | None = None

    def describe(self) -> dict[str, str]:
        """Key → distribution as JSON: part of the sweep's identity."""
        from optuna.distributions import distribution_to_json

        return {key: distribution_to_json(d) for key, d in sorted(self.distributions.items())}

    def overrides(self, trial: Any) -> list[str]:
        """Ask a trial for all its parameters; all overrides of its config, the custom function's last."""
        for key, distribution in self.distributions.items():
            _suggest(trial, key, distribution)
        chosen = [as_override(key, trial.params[key]) for key in self.distributions]
        return [*self.fixed, *chosen, *(self._custom(trial) if self.custom else [])]

    def _custom(self, trial: Any) -> list[str]:
        assert self.custom is not None
        given = self.custom(trial)
        if isinstance(given, Mapping):
            return [f"{key}={_quoted(value)}" for key, value in given.items()]
        if isinstance(given, Sequence) and all(isinstance(item, str) for item in given):
            return list(given)
        raise UserError(
            "hydra.sweeper.custom_space must return overrides, a list of KEY=VALUE or a dict,"
            f" got {given!r}"
        )

    def grid(self, seed: int) -> list[dict[str, Any]]:
        """Every combination, in an order that the seed shuffles.

        Raises: UserError for a key whose values cannot be counted, a custom function, too many combinations.
        """
        if self.custom is not None:
            raise UserError(
                "hydra.sweeper.custom_space must be null for sampler.name=grid, got one"
            )
        values = {key: _values(key, d) for key, d in self.distributions.items()}
        size = math.prod(len(items) for items in values.values())
        if size > LARGEST_GRID:
            raise UserError(
                f"sampler.name=grid must have <= {LARGEST_GRID} combinations, got {size}"
            )
        points = [
            dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())
        ]
        random.Random(seed).shuffle(points)
        return points


def any_point(space: Space) -> list[str]:
    """The overrides of one point, always the same."""
    import optuna

    quiet_optuna()
    sampler = optuna.samplers.RandomSampler(seed=0)
    return space.overrides(optuna.create_study(sampler=sampler).ask())


def space_of(overrides: Sequence[Override], custom_space: str | None = None) -> Space:
    """The space of parsed overrides; a later one replaces an earlier one of its key.

    Raises: UserError that names the key.
    """
    distributions: dict[str, BaseDistribution] = {}
    fixed: dict[str, str] = {}
    for override in overrides:
        key = override.get_key_element()
        distributions.pop(key, None)
        fixed.pop(key, None)
        if override.is_sweep_override():
            distributions[key] = distribution_of(override)
        else:
            equals = "" if override.is_delete() and override.value_type is None else "="
            fixed[key] = f"{key}{equals}{override.get_value_element_as_str() if equals else ''}"
    custom = _function(custom_space) if custom_space else None
    if not distributions and custom is None:
        raise UserError(
            "a search must have something to search, got no key with several values:"
            " 'ppo.kl_coef=tag(log,interval(0.005,0.2))'"
        )
    return Space(distributions, list(fixed.values()), custom)


def distribution_of(override: Override) -> BaseDistribution:
    """Optuna's distribution of one sweep override. Raises: UserError that names the key."""
    from optuna.distributions import CategoricalDistribution

    key, value = override.get_key_element(), override.value()
    tags: set[str] = getattr(value, "tags", set())
    try:
        if tags - TAGS:
            raise ValueError(f"tags must be log or int, got {', '.join(sorted(tags - TAGS))}")
        if isinstance(value, IntervalSweep):
            return _interval(value, tags)
        if isinstance(value, RangeSweep):
            return _range(value, tags)
        if tags:
            raise ValueError("choices take no tags")
        if isinstance(value, ChoiceSweep):
            value.shuffle = False  # Hydra would shuffle anew each time: another sweep
        choices: list[Any] = list(override.sweep_iterator(transformer=_choice))
        if not choices:
            raise ValueError("there must be a value, got none")
        return CategoricalDistribution(list(dict.fromkeys(choices)))
    except ValueError as error:
        raise UserError(
            f"{key} must be a search space, got {override.input_line!r}: {error}"
        ) from None


def _choice(value: Any) -> CategoricalChoiceType:
    # None is a choice of its own; text keeps its quotes, so that it can be written as an override again
    if isinstance(value, str) and _SYNTAX.search(value) and "${" not in value:  # it was escaped
        return _quoted(value)
    return None if value is None else Transformer.encode(value)  # type: ignore[return-value]


def _interval(value: IntervalSweep, tags: set[str]) -> BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    low, high = value.start, value.end
    assert low is not None
    assert high is not None
    if "int" in tags or (isinstance(low, int) and isinstance(high, int)):
        if low != int(low) or high != int(high):
            raise ValueError("an interval of integers must have whole ends")
        return IntDistribution(int(low), int(high), log="log" in tags)
    return FloatDistribution(low, high, log="log" in tags)


def _range(value: RangeSweep, tags: set[str]) -> BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    points = sorted(value.range())
    if not points:
        raise ValueError("the range is empty")
    step = abs(value.step)
    if all(isinstance(point, int) for point in points) or "int" in tags:
        if any(point != int(point) for point in points):
            raise ValueError("a range of integers must have whole steps")
        return IntDistribution(int(points[0]), int(points[-1]), log="log" in tags, step=int(step))
    if "log" in tags:
        raise ValueError("a logarithm has no steps: use interval")
    return FloatDistribution(float(points[0]), float(points[-1]), step=float(step))


def _suggest(trial: Any, key: str, distribution: Any) -> None:
    from optuna.distributions import FloatDistribution, IntDistribution

    if isinstance(distribution, FloatDistribution | IntDistribution):
        kind = "float" if isinstance(distribution, FloatDistribution) else "int"
        suggest = getattr(trial, f"suggest_{kind}")
        suggest(
            key, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    else:
        trial.suggest_categorical(key, distribution.choices)


def _values(key: str, distribution: Any) -> list[Any]:
    from optuna.distributions import CategoricalDistribution

    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if distribution.step is None or distribution.log:
        raise UserError(
            f"{key} must have values that can be counted for sampler.name=grid, got {distribution}"
        )
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    return [distribution.low + i * distribution.step for i in range(count)]


def as_override(key: str, value: Any) -> str:
    """`key=value` in Hydra's grammar."""
    if value is None:
        return f"{key}=null"
    if isinstance(value, bool):
        return f"{key}={str(value).lower()}"
    return f"{key}={value!r}" if isinstance(value, float) else f"{key}={value}"


_SYNTAX = re.compile(r"""[,=(){}\[\]'"\\]""")
_PLAIN = re.compile(r"[A-Za-z_./][\w./-]*", re.ASCII)
_WORDS = ("null", "true", "false", "nan", "inf")
"""Texts that Hydra would read as something else."""


def _quoted(value: Any) -> str:
    """A Python value in Hydra's grammar, so that it is read as the same value."""
    if hasattr(value, "item"):  # numpy's numbers
        value = value.item()
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_quoted(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(map(_quoted, value))}]"
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    # only backslashes in front of a quote are read as escapes
    return "'" + re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text) + "'"


def _function(path: str) -> Callable[[Any], Any]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"hydra.sweeper.custom_space must be an importable function, got {path!r} ({error});"
            " PYTHONPATH=. imports from the working directory"
        ) from error
    if not callable(found):
        raise UserError(f"hydra.sweeper.custom_space must be a function, got {path!r}")
    return found
