"""Constraints such as `ppo/validation/kl_k1 <= 10`: read, never evaluated as code."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_lightning.errors import UserError

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_PATTERN = re.compile(
    rf"\s*(?P<metric>[A-Za-z_][\w./@-]*)\s*(?P<sign><=|>=|<|>)\s*(?P<bound>{_NUMBER})\s*"
)


@dataclass(frozen=True)
class Comparison:
    """A metric that must lie on one side of a number."""

    metric: str
    sign: str
    """<= | >= | < | >"""
    bound: float

    def violation(self, metrics: Mapping[str, float | None]) -> float:
        """How far the metric is on the wrong side: <= 0 where it holds, inf where the metric is unknown."""
        value = metrics.get(self.metric)
        if value is None or not math.isfinite(value):
            return math.inf
        excess = value - self.bound if self.sign[0] == "<" else self.bound - value
        # optuna counts 0 as satisfied: a strict comparison that is met with equality is not
        return math.ulp(1.0) if excess == 0 and len(self.sign) == 1 else excess

    def __str__(self) -> str:
        return f"{self.metric} {self.sign} {self.bound:g}"


def parse(text: str) -> Comparison:
    """`METRIC <= NUMBER`, also >=, < and >.

    Raises: UserError for anything else.
    """
    match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise UserError(
            f"hydra.sweeper.constraints must be comparisons like 'ppo/validation/kl_k1 <= 10',"
            f" got {text!r}"
        )
    return Comparison(match["metric"], match["sign"], float(match["bound"]))


def parse_all(texts: Sequence[str]) -> list[Comparison]:
    """`parse` of each; two are a range."""
    return [parse(text) for text in texts]
