"""The score of reward models that read the policy's own tokens: one, or an ensemble of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from rlhf_lightning.models.forward import sequence_scores
from rlhf_lightning.models.shared_prompt import response_scores_by_cache
from rlhf_lightning.models.tokens import eos_id
from rlhf_lightning.rewards.base import Means, ScoreRequest


class LearnedReward(nn.Module):
    """A frozen scalar-head model with the policy's tokenizer."""

    def __init__(self, model: nn.Module, *, end_with_eos: bool = False) -> None:
        super().__init__()
        self.model, self.end_with_eos = model, end_with_eos

    @torch.no_grad()
    def forward(self, request: ScoreRequest) -> Tensor:
        """Scores (B,) at the last real token of prompt + response, or at the EOS behind it."""
        response_ids, response_mask = request.response_ids, request.response_mask
        if self.end_with_eos:
            eos = eos_id(request.tokenizer)
            response_ids, response_mask = with_eos(response_ids, response_mask, eos)
        if request.share_prompt:
            sequence = (request.prompt_ids, request.prompt_mask)
            return response_scores_by_cache(self.model, *sequence, response_ids, response_mask)
        ids = torch.cat([request.prompt_ids, response_ids], 1)
        mask = torch.cat([request.prompt_mask, response_mask], 1)
        return sequence_scores(self.model, ids, mask)


def with_eos(ids: Tensor, mask: Tensor, eos: int) -> tuple[Tensor, Tensor]:
    """Responses (B, R), right-padded, with EOS behind those that do not end with it: (B, R + 1) if there are such."""
    lengths = mask.sum(1)
    last = ids.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0]
    cut = ((last != eos) | (lengths == 0)).nonzero()[:, 0]
    if len(cut) == 0:
        return ids, mask
    ids, mask = nn.functional.pad(ids, (0, 1), value=eos), nn.functional.pad(mask, (0, 1))
    ids[cut, lengths[cut]], mask[cut, lengths[cut]] = eos, True
    return ids, mask


class EnsembleReward(nn.Module):
    """Several reward models that judge together.

    mean, worst or uncertainty of their scores (`combined_scores`); tells how much they differ.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        *,
        combine: str,
        coef: float,
        end_with_eos: bool = False,
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            LearnedReward(model, end_with_eos=end_with_eos) for model in models
        )
        self.combine, self.coef, self._means = combine, coef, Means()

    def forward(self, request: ScoreRequest) -> Tensor:
        """Scores (B,)."""
        scores = torch.stack([cast("Tensor", member(request)) for member in self.members])  # (M, B)
        self._means.add("std_members", scores.std(0, correction=0), request.counted)
        return combined_scores(scores, combine=self.combine, coef=self.coef)

    def take_statistics(self) -> dict[str, float]:
        """`std_members`: mean over responses of the standard deviation over members."""
        return self._means.take()


def combined_scores(scores: Tensor, *, combine: str, coef: float) -> Tensor:
    """One score a response from those of M members, (M, B) → (B,).

    mean: μ = 1/M Σ s_i ;  worst: min s_i ;  uncertainty: μ − coef · σ, σ² = 1/M Σ (s_i − μ)².
    Source: Coste et al. 2023, arXiv:2310.02743, section 3 (worst-case and uncertainty-weighted optimisation). They
    subtract λσ²; σ is in the score's own unit, so that coef means the same for scores of any scale.
    Raises: ValueError for another `combine`.
    """
    if combine == "mean":
        return scores.mean(0)
    if combine == "worst":
        return scores.min(0).values
    if combine == "uncertainty":
        return scores.mean(0) - coef * scores.std(0, correction=0)
    raise ValueError(f"combine must be one of mean, worst, uncertainty, got {combine!r}")
