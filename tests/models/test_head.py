"""Scores are fp32."""

from __future__ import annotations

import torch
from torch import nn

from rlhf_lightning.models.head import ScalarHead


def test_a_head_whose_weights_an_engine_made_bfloat16_still_scores_in_fp32() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(512, 1, bias=False)
    head = ScalarHead.of(layer)
    assert head.weight is layer.weight  # one parameter: an optimizer that has it trains it
    assert list(head.state_dict()) == list(layer.state_dict())
    head.bfloat16()
    hidden = torch.randn(1000, 512).bfloat16()
    scores = head(hidden)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, hidden.float() @ head.weight.float().T)
    assert len(scores.unique()) == 1000 > len(scores.bfloat16().unique())
