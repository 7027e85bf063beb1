"""When a running trial is given up: Optuna's pruners by name, and the rules of this field."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.sweeps.settings import PrunerSettings, RuleSettings

KL, ENTROPY, EOS_RATE = "val/kl_k1", "val/entropy", "val/eos_rate"
PROXY, GOLD = "val/score", "val/gold_score"
WATCHED = (KL, ENTROPY, EOS_RATE, PROXY, GOLD)

CLASSES = {
    "median": "MedianPruner",
    "successive_halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
    "patience": "PatientPruner",
}

Curves = Mapping[str, Sequence[float]]
"""Metric → its values at the validations so far, oldest first."""


def make_pruner(settings: PrunerSettings) -> Any:
    """Optuna's pruner.

    Raises: UserError for arguments that the class does not take.
    """
    import optuna

    if settings.name == "none":  # switches off a pruner whose arguments stand in a sweep's file
        return optuna.pruners.NopPruner()
    kind = getattr(optuna.pruners, CLASSES[settings.name])
    # patience looks at the trial's own curve alone
    given = {"wrapped_pruner": None} if settings.name == "patience" else {}
    known = [name for name in inspect.signature(kind).parameters if name not in given]
    for key in settings.args:
        if key not in known:
            raise UserError(
                f"hydra.sweeper.pruner.args.{key} must be one of {', '.join(known)}, got an unknown key"
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return kind(**given, **settings.args)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"hydra.sweeper.pruner.args must fit {kind.__name__}, got: {error}"
        ) from error


def broken_rule(curves: Curves, rules: RuleSettings) -> str | None:
    """The first rule that the newest validation breaks, in words; None while all hold."""
    seen = max(len(curves.get(name, ())) for name in WATCHED)
    if seen <= rules.warmup_validations:
        return None
    return (
        _above(curves, KL, rules.kl_budget, "rules.kl_budget")
        or _below(curves, ENTROPY, rules.min_entropy, "rules.min_entropy")
        or _below(curves, EOS_RATE, rules.min_eos_rate, "rules.min_eos_rate")
        or _hacking(curves, rules)
    )


def _above(curves: Curves, metric: str, bound: float | None, key: str) -> str | None:
    values = curves.get(metric)
    # what is not a number is no reason: such a run fails, it is not given up
    if bound is None or not values or not values[-1] > bound:
        return None
    return f"{metric} is {values[-1]:.4g}, above {key}={bound:g}"


def _below(curves: Curves, metric: str, bound: float | None, key: str) -> str | None:
    values = curves.get(metric)
    if bound is None or not values or not values[-1] < bound:
        return None
    return f"{metric} is {values[-1]:.4g}, below {key}={bound:g}"


def _hacking(curves: Curves, rules: RuleSettings) -> str | None:
    """Overoptimization: what the policy is trained on still rises while what is meant falls."""
    count = rules.hacking_validations
    proxy, gold = curves.get(PROXY, ()), curves.get(GOLD, ())
    # the validations of the warm-up are no part of the comparison
    proxy, gold = proxy[rules.warmup_validations :], gold[rules.warmup_validations :]
    if count is None or min(len(proxy), len(gold)) <= count:
        return None
    last = range(-count, 0)
    if all(proxy[i] > proxy[i - 1] and gold[i] < gold[i - 1] for i in last):
        return (
            f"{PROXY} rose from {proxy[-count - 1]:.4g} to {proxy[-1]:.4g} while {GOLD} fell from"
            f" {gold[-count - 1]:.4g} to {gold[-1]:.4g} (rules.hacking_validations={count})"
        )
    return None
