"""A plain Python function of prompt and response as the reward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rlhf_lightning.rewards.base import ScoreRequest


class TextReward(nn.Module):
    """Calls `function(prompt, response) -> float` for every row."""

    def __init__(self, function: Callable[[str, str], float]) -> None:
        super().__init__()
        self.function = function

    def forward(self, request: ScoreRequest) -> Tensor:
        """Scores (B,); the function's own errors are the user's to see."""
        pairs = zip(request.prompts, request.responses, strict=True)
        scores = [float(self.function(prompt, response)) for prompt, response in pairs]
        return torch.tensor(scores, device=request.prompt_ids.device)
