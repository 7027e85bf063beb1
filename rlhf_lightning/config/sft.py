"""Supervised fine-tuning, and pretraining."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlhf_lightning.config.checks import require
from rlhf_lightning.config.lora import LoRAConfig
from rlhf_lightning.config.training import InitConfig, ScheduleConfig


@dataclass
class SFTConfig:
    """Supervised fine-tuning, and pretraining (the same loss on raw text)."""

    stage: str = "sft"
    """sft | pretrain: prefix of this node's keys in messages and metrics."""
    init: InitConfig = field(default_factory=InitConfig)
    lora: LoRAConfig | None = None
    """Train adapters only; the artifact holds the merged weights and, beside them, the adapter."""
    examples: int = 6000
    """Demonstrations (documents in pretraining) of one epoch; a finite source may hold fewer."""
    epochs: int = 1
    """[I] uses 16 on 13k demonstrations; nano 1 on generated ones."""
    global_batch_size: int = 64
    """Examples of one optimizer step over all devices."""
    micro_batch_size: int = 64
    """Packed rows of one forward pass per device."""
    max_length: int = 128
    """Tokens of a packed row. A longer example is counted and dropped, never cut."""
    optimizer: Any = None
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    grad_clip: float = 1.0
    """Global norm."""
    dropout: float = 0.0
    """Residual dropout where the architecture has it; [I] 0.2 for SFT."""
    eval_every: int = 25
    """Optimizer steps between validations."""
    eval_examples: int = 128
    checkpoint_every: int = 25
    """Optimizer steps between checkpoints."""

    def __post_init__(self) -> None:
        for key in (
            "examples",
            "epochs",
            "global_batch_size",
            "micro_batch_size",
            "max_length",
            "eval_every",
            "eval_examples",
            "checkpoint_every",
        ):
            require(getattr(self, key) >= 1, f"{self.stage}.{key}", ">= 1", getattr(self, key))
        require(self.grad_clip > 0, f"{self.stage}.grad_clip", "> 0", self.grad_clip)
        require(0 <= self.dropout < 1, f"{self.stage}.dropout", "in [0, 1)", self.dropout)
