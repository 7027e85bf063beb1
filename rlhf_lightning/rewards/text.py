"""A plain Python function of prompt and response as the reward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rlhf_lightning.rewards.base import ScoreRequest
from rlhf_lightning.rewards.functions import call_function


class TextReward(nn.Module):
    """Calls `function(prompt, response) -> float` for every row, with `record=` where it has that parameter."""

    def __init__(self, function: Callable[..., float], *, key: str = "reward_source") -> None:
        super().__init__()
        self.function, self.key = function, key

    def forward(self, request: ScoreRequest) -> Tensor:
        """Scores (B,).

        Raises: RunFailed that begins with the part's key if the function raises anything, or returns no number.
        """
        rows = zip(request.prompts, request.responses, request.records, strict=True)
        scores = [call_function(self.function, *row, key=self.key) for row in rows]
        return torch.tensor(scores, dtype=torch.float32, device=request.prompt_ids.device)
