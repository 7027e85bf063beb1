"""Low-rank adapters."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlhf_lightning.config.checks import require


@dataclass
class LoRAConfig:
    """Train low-rank adapters and leave the weights frozen. Source: Hu et al. 2021, arXiv:2106.09685."""

    rank: int = 16
    """r: an adapter of a layer with i inputs and o outputs has r · (i + o) numbers. Habit (8 to 64 are usual)."""
    alpha: float = 32.0
    """An adapter's output is scaled by alpha / rank. Habit: twice the rank; it stays when only the rank is changed."""
    targets: str = "all-linear"
    """all-linear (every linear layer of the backbone, never the output layer), or names: q_proj,v_proj (quoted).
    Default: Dettmers et al. 2023, arXiv:2305.14314, who found all layers to be needed."""
    last_blocks: int | None = None
    """Adapters on this many of the last transformer blocks, null: on all. The backward pass ends at the first of them,
    and blocks before it keep no activations. Habit: all."""
    dropout: float = 0.0
    """On the adapters' input while SFT and the reward model train. PPO has none, or its ratio would not be one."""

    def __post_init__(self) -> None:
        require(self.rank >= 1, "lora.rank", ">= 1", self.rank)
        require(0 < self.alpha < math.inf, "lora.alpha", "> 0", self.alpha)
        require(
            bool(self.targets.strip()), "lora.targets", "all-linear or layer names", self.targets
        )
        positive = self.last_blocks is None or self.last_blocks >= 1
        require(positive, "lora.last_blocks", ">= 1 or null", self.last_blocks)
        require(0 <= self.dropout < 1, "lora.dropout", "in [0, 1)", self.dropout)
