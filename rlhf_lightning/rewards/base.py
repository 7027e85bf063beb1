"""The protocol of a reward, and what it may look at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.models.tokens import decode


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
