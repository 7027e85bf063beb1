"""The score of a reward model that reads the policy's own tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlhf_lightning.models.forward import sequence_scores
from rlhf_lightning.rewards.base import ScoreRequest


class LearnedReward(nn.Module):
    """A frozen scalar-head model with the policy's tokenizer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(self, request: ScoreRequest) -> Tensor:
        """Scores (B,) at the last real token of prompt + response."""
        ids = torch.cat([request.prompt_ids, request.response_ids], 1)
        mask = torch.cat([request.prompt_mask, request.response_mask], 1)
        return sequence_scores(self.model, ids, mask)
