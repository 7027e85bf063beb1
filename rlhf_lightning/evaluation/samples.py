"""What one model said to the evaluation prompts, and what was thought of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

GOLD_PARTS = ("helpful", "truthful", "harmless")
"""What a verdict may have beside its total."""


class Gold(Protocol):
    """The gold judge's verdict of one response; it may have GOLD_PARTS too."""

    @property
    def total(self) -> float: ...


@dataclass
class ModelSamples:
    """One response of one model to each prompt. Every list has an element for each prompt, or is None."""

    name: str
    """Prefix of the metrics: base, sft, ppo, ..."""
    prompts: list[dict[str, Any]]
    """Prompt records; the same ones, in the same order, for all models that are compared."""
    responses: list[str]
    response_tokens: list[int]
    """Length of each response, EOS included."""
    ended: list[bool]
    """True where the response ends with EOS."""
    gold: Sequence[Gold] | None = None
    scores: list[float] | None = None
    """The reward model's scores."""
    kl_k1: list[float] | None = None
    """Sum over the response of logπ − logπ_ref, nats."""
    kl_k3: list[float] | None = None
    """Sum over the response of e^{−k1} − 1 + k1, nats."""
    reworded_responses: list[str | None] | None = None
    """Response to the same request in other words; None where there is no rewording."""
    known: dict[str, list[float]] = field(default_factory=dict)
    """Known score → one number for each prompt (evaluate.known)."""

    def __post_init__(self) -> None:
        lists = {f.name: getattr(self, f.name) for f in fields(self)}
        lists |= {f"known.{name}": values for name, values in lists.pop("known").items()}
        for name, value in lists.items():
            if name in ("name", "prompts") or value is None:
                continue
            if len(value) != len(self.prompts):
                raise ValueError(
                    f"{self.name}.{name} must have one element for each of"
                    f" {len(self.prompts)} prompts, got {len(value)}"
                )

    def __len__(self) -> int:
        return len(self.prompts)
