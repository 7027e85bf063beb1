"""Which parameters a search's result depends on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.sweeps.storage import quiet_optuna

FEWEST = 5
"""Complete trials below which nothing is computed: the evaluation compares the best tenth, at least two, with all."""
TRUSTED_PER_PARAMETER = 10
"""Complete trials for each parameter below which the numbers are called a hint. A habit, not a bound."""


@dataclass(frozen=True)
class Explained:
    """How much each parameter explains of one objective."""

    shares: dict[str, float]
    """Parameter → share, summing to 1; empty where it cannot be said."""
    note: str


def importance(trials: Sequence[Any], place: int, direction: str) -> Explained:
    """PED-ANOVA over the complete trials, for objective `place`.

    Source: Watanabe et al. 2023, arXiv:2304.10255, as Optuna implements it.
    """
    import optuna

    quiet_optuna()
    known = [t for t in trials if t.state.name == "COMPLETE"]
    everywhere = [key for key in _params(known) if all(key in t.params for t in known)]
    varied = [key for key in everywhere if len({str(t.params[key]) for t in known}) > 1]
    missing = [key for key in _params(known) if key not in everywhere]
    left_out = f"left out, because some trials do not have it: {', '.join(missing)}"
    values = [t.values[place] for t in known]
    if len(known) < FEWEST:
        return Explained({}, f"too few trials: {len(known)} complete, {FEWEST} are needed")
    if not varied:
        return Explained({}, f"no parameter that all trials have was varied; {left_out}")
    if len(set(values)) == 1:
        return Explained({}, "all complete trials have the same value")
    typed: Any = direction
    study = optuna.create_study(direction=typed)
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={key: t.params[key] for key in varied},
                distributions={key: _distribution(known, key) for key in varied},
                value=value,
            )
            for t, value in zip(known, values, strict=True)
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        shares = optuna.importance.get_param_importances(study, params=varied)
    few = len(known) < TRUSTED_PER_PARAMETER * len(varied)
    hint = f"{len(known)} trials for {len(varied)} parameters: a hint, no more" if few else ""
    return Explained(
        shares, "; ".join(text for text in (hint, left_out if missing else "") if text)
    )


def _params(trials: Sequence[Any]) -> list[str]:
    return list(dict.fromkeys(key for trial in trials for key in trial.params))


def _distribution(trials: Sequence[Any], key: str) -> Any:
    """That of the newest trial; of one that a record does not say, what its values span."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    values = [trial.params[key] for trial in trials]
    said = trials[-1].distributions.get(key)
    if said is not None and all(_fits(said, value) for value in values):
        return said
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return FloatDistribution(float(min(values)), float(max(values)))
    return CategoricalDistribution(list(dict.fromkeys(values)))


def _fits(distribution: Any, value: Any) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (TypeError, ValueError):
        return False
