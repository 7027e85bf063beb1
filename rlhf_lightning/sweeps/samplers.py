"""Optuna's samplers by name, seeded for each trial."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import warnings
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.sweeps.settings import SamplerSettings

METRICS = "metrics"
"""User attribute of a trial: the metrics that objectives and constraints read."""

CLASSES = {
    "tpe": "TPESampler",
    "cmaes": "CmaEsSampler",
    "nsga2": "NSGAIISampler",
    "random": "RandomSampler",
    "grid": "RandomSampler",  # never asked: every point of a grid is enqueued
}
CONSTRAINED = ("tpe", "nsga2")
"""Samplers that learn from constraints; for the others they only say which trial is the best."""
OURS = ("seed", "constraints_func")
"""Arguments that are not the user's: constraints are told to the trial, and every sampler reads them there."""


def make_sampler(settings: SamplerSettings, number: int) -> Any:
    """The sampler of trial `number`.

    A sampler that lived on would repeat its draws in a second process and after a restart: each trial has its own
    seed, and what was learned comes from the storage.
    Raises: UserError for arguments that the class does not take.
    """
    import optuna

    kind = getattr(optuna.samplers, CLASSES[settings.name])
    known = [name for name in inspect.signature(kind).parameters if name not in OURS]
    for key in settings.args:
        if key not in known:
            raise UserError(
                f"hydra.sweeper.sampler.args.{key} must be one of {', '.join(known)}, got an unknown key"
            )
    keywords: dict[str, Any] = {**settings.args, "seed": seed_of(settings.seed, number)}
    if settings.name == "cmaes":
        _require_cmaes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            return kind(**keywords)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"hydra.sweeper.sampler.args must fit {kind.__name__}, got: {error}"
            ) from error


def seed_of(seed: int, number: int) -> int:
    """The seed of one trial."""
    digest = hashlib.sha256(f"{seed}/trial/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _require_cmaes() -> None:
    if importlib.util.find_spec("cmaes") is None:
        raise UserError(
            "hydra.sweeper.sampler.name=cmaes must have the package cmaes installed, got none"
        )
