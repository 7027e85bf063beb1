"""The whole score from its settings: score = Σ weight · part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from rlhf_lightning.config import RewardPartConfig, RewardSourceConfig
from rlhf_lightning.rewards.base import Means, ScoreRequest, Telling
from rlhf_lightning.rewards.external import load_external
from rlhf_lightning.rewards.functions import load_function
from rlhf_lightning.rewards.learned import EnsembleReward, LearnedReward
from rlhf_lightning.rewards.text import TextReward

Learned = Callable[[str], nn.Module]
"""Parent role (reward, reward.1, ...) → its frozen scalar-head model."""


class WeightedReward(nn.Module):
    """score = Σ weight · part."""

    def __init__(self, parts: Mapping[str, tuple[float, nn.Module]]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(part for _, part in parts.values())
        self.weights = {name: weight for name, (weight, _) in parts.items()}
        self._means = Means()

    def forward(self, request: ScoreRequest) -> Tensor:
        """Scores (B,) fp32."""
        total = torch.zeros(len(request.response_ids), device=request.response_ids.device)
        for (name, weight), part in zip(self.weights.items(), self.parts, strict=True):
            scores = cast("Tensor", part(request)).float()
            total = total + weight * scores
            if len(self.weights) > 1:
                self._means.add(f"score_{name}", scores, request.counted)
        return total

    def take_statistics(self) -> dict[str, float]:
        """`score_NAME` of each part where there are several (before its weight), and what the parts tell themselves."""
        found = self._means.take()
        for name, part in zip(self.weights, self.parts, strict=True):
            if isinstance(part, Telling):
                found |= {f"score_{name}_{k}": v for k, v in part.take_statistics().items()}
        return found


def build_reward(source: RewardSourceConfig, learned: Learned) -> WeightedReward:
    """The score of `reward_source`.

    `learned` gives the model of a parent role; it may be called with each of `source.roles`, once.
    Raises: UserError with the key of a part that cannot be made.
    """
    # what a mistake of the user's may stop comes first
    order = sorted(source.parts.items(), key=lambda item: item[1].kind == "learned")
    made = {
        name: _learned(source, learned)
        if part.kind == "learned"
        else build_known(part, key=f"reward_source.parts.{name}")
        for name, part in order
    }
    return WeightedReward({name: (part.weight, made[name]) for name, part in source.parts.items()})


def build_known(part: RewardPartConfig, *, key: str) -> nn.Module:
    """A score that is not learned here: a function, or a model of other making."""
    if part.kind == "model":
        return load_external(part, key=key)
    assert part.target is not None
    return TextReward(load_function(part.target, part.args, key=key), key=key)


def _learned(source: RewardSourceConfig, learned: Learned) -> nn.Module:
    part, models = source.learned, [learned(role) for role in source.roles]
    assert part is not None
    if len(models) == 1:
        return LearnedReward(models[0], end_with_eos=part.end_with_eos)
    return EnsembleReward(
        models, combine=part.combine, coef=part.coef, end_with_eos=part.end_with_eos
    )
