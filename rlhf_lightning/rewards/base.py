"""The protocol of a reward, what it may look at, and what it may tell beside the score."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.models.tokens import decode
from rlhf_lightning.processes import gather


@dataclass
class ScoreRequest:
    """Finished responses that want a score."""

    prompt_ids: Tensor
    """(B, P) left-padded."""
    prompt_mask: Tensor
    response_ids: Tensor
    """(B, R) right-padded, EOS included."""
    response_mask: Tensor
    records: list[dict[str, Any]]
    """The prompts' source records."""
    tokenizer: PreTrainedTokenizerFast
    share_prompt: bool = False
    """Several responses have the same prompt: it is worth while to compute it once. No response is empty then."""
    counted: Tensor | None = None
    """(B,) bool: a row that is not is a copy, there so that all processes compute equally many. None: all are."""

    @cached_property
    def responses(self) -> list[str]:
        """The responses as text, without special tokens."""
        return decode(self.tokenizer, self.response_ids, self.response_mask)

    @cached_property
    def prompts(self) -> list[str]:
        """The prompts as the policy saw them, special tokens included."""
        return decode(self.tokenizer, self.prompt_ids, self.prompt_mask, special=True)


class RewardFunction(Protocol):
    """One score for each response, (B,) fp32 on the request's device."""

    def __call__(self, request: ScoreRequest) -> Tensor: ...


@runtime_checkable
class Telling(Protocol):
    """A reward with numbers of its own beside the score."""

    def take_statistics(self) -> dict[str, float]:
        """Name → mean over the responses that were scored since this was called last."""
        ...


def taken_statistics(reward: RewardFunction, group: str) -> dict[str, float]:
    """`GROUP/name` of what a reward tells since it was asked last; nothing of one that tells nothing."""
    return {f"{group}/{name}": value for name, value in statistics_of(reward).items()}


def statistics_of(reward: object) -> dict[str, float]:
    """What a reward tells since it was asked last; nothing of one that tells nothing."""
    return reward.take_statistics() if isinstance(reward, Telling) else {}


class Means:
    """Means over responses, batch by batch."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, name: str, values: Tensor, counted: Tensor | None) -> None:
        """Take in one value for each response, (B,); `counted` is the request's."""
        if counted is not None:
            values = values[counted.to(values.device)]
        total, count = self._sums.get(name, (values.new_zeros(()), 0))
        self._sums[name] = (total + values.detach().sum(), count + len(values))

    def take(self) -> dict[str, float]:
        """The means of everything since the last call, over all processes."""
        parts = gather({name: (total.item(), n) for name, (total, n) in self._sums.items()})
        totals: dict[str, tuple[float, int]] = {}
        for name, (total, count) in (item for part in parts for item in part.items()):
            before, number = totals.get(name, (0.0, 0))
            totals[name] = (before + total, number + count)
        found = {name: total / count for name, (total, count) in totals.items() if count}
        self._sums.clear()
        return found
