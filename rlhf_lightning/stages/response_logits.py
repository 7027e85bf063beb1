"""The logits of responses, and what is read off them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_lightning.functional.logprobs import entropy, token_logprobs
from rlhf_lightning.models.forward import response_logits
from rlhf_lightning.models.shared_prompt import response_logits_by_cache

Sequence = tuple[Tensor, Tensor, Tensor, Tensor]
"""Prompts and their mask, (B, P), left-padded; responses and their mask, (B, R), right-padded."""


@dataclass
class ResponseLogits:
    """The logits from which each response token is predicted, at the sampling temperature."""

    parts: tuple[Tensor, ...]
    """(B, R, V), or (B, 1, V) and (B, R − 1, V): joined they would be in memory twice."""
    temperature: float

    @classmethod
    def of(
        cls, model: nn.Module, sequence: Sequence, *, temperature: float, share_prompt: bool
    ) -> ResponseLogits:
        """One pass over prompt and response; or one over the distinct prompts and one over the responses."""
        if share_prompt:
            return cls(response_logits_by_cache(model, *sequence), temperature)
        return cls((response_logits(model, *sequence),), temperature)

    def logprobs(self, ids: Tensor) -> Tensor:
        """Log-probabilities of the response tokens `ids`, (B, R) fp32."""
        tokens = ids.split([part.shape[1] for part in self.parts], 1)
        temperature = self.temperature
        return torch.cat(
            [
                token_logprobs(logits, own, temperature=temperature)
                for logits, own in zip(self.parts, tokens, strict=True)
            ],
            1,
        )

    def entropy(self) -> Tensor:
        """Entropy of each token's distribution, (B, R) fp32."""
        return torch.cat(
            [entropy(logits, temperature=self.temperature) for logits in self.parts], 1
        )
