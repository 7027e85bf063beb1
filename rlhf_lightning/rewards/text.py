"""A plain Python function of prompt and response as the reward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rlhf_lightning.rewards.base import ScoreRequest
from rlhf_lightning.rewards.functions import call_function


class TextReward(nn.Module):
    """Calls `function(prompt, response) -> float` for every row, with `record=` where it has that parameter."""

    def __init__(self, function: Callable[..., float]) -> None:
        super().__init__()
        self.function = function

    def forward(self, request: ScoreRequest) -> Tensor:
        """Scores (B,); the function's own errors are the user's to see."""
        rows = zip(request.prompts, request.responses, request.records, strict=True)
        scores = [call_function(self.function, *row) for row in rows]
        return torch.tensor(scores, dtype=torch.float32, device=request.prompt_ids.device)
