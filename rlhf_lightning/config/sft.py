"""Supervised fine-tuning, and pretraining."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlhf_lightning.config.checks import require
from rlhf_lightning.config.lora import LoRAConfig
from rlhf_lightning.config.training import InitConfig, ScheduleConfig


@dataclass
class SFTConfig:
    """Supervised fine-tuning, and pretraining (the same loss on raw text).

    conf/sft/*.yaml and conf/pretrain/*.yaml override many of these: sft=default has 16000 examples in batches of 32,
    pretrain=default 14400 (nano). sft=instructgpt sets no lengths.
    """

    stage: str = "sft"
    """sft | pretrain: prefix of this node's keys in messages and metrics."""
    init: InitConfig = field(default_factory=InitConfig)
    """What the weights start from; null: pretrain's run, or the model's own weights where model.path is set."""
    lora: LoRAConfig | None = None
    """Train adapters only; the artifact holds the merged weights and, beside them, the adapter.
    null: all weights, as in [I]."""
    examples: int = 6000
    """Demonstrations (documents in pretraining) of one epoch; a finite source may hold fewer. Nano."""
    epochs: int = 1
    """[I] uses 16 on 13k demonstrations; nano 1 on generated ones."""
    global_batch_size: int = 64
    """Examples of one optimizer step over all devices; 32 in [I] and in the presets."""
    micro_batch_size: int = 64
    """Packed rows of one forward pass per device; size."""
    max_length: int = 128
    """Tokens of a packed row. A longer example is counted and dropped (or cut, as mix.over_long says). Nano."""
    max_reply_tokens: int | None = None
    """Tokens of a demonstration's last reply, EOS included. A longer one is counted and dropped (or cut, as
    mix.over_long says): a policy that may say little (ppo.max_response_tokens) learns here to come to an end.
    null: any that fits."""
    optimizer: Any = None
    """`_target_` node of a torch optimizer, from conf/optimizer: adamw."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over optimizer steps. From conf/schedule: cosine to 10 % [I]."""
    grad_clip: float = 1.0
    """Largest global norm of the gradient; habit."""
    dropout: float = 0.0
    """Dropout of residuals and embeddings where the architecture has it, never of attention; [I] 0.2 (residual)."""
    eval_every: int = 25
    """Optimizer steps between validations; nano."""
    eval_examples: int = 128
    """Examples of the validation split at each validation: always the same ones; nano."""
    checkpoint_every: int = 25
    """Optimizer steps between checkpoints; no part of a run's identity. Nano."""

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
        reply = self.max_reply_tokens
        rule = "null or >= 1" if self.stage == "sft" else "null (raw text has no replies)"
        allowed = reply is None or (reply >= 1 and self.stage == "sft")
        require(allowed, f"{self.stage}.max_reply_tokens", rule, reply)
        require(self.grad_clip > 0, f"{self.stage}.grad_clip", "> 0", self.grad_clip)
        require(0 <= self.dropout < 1, f"{self.stage}.dropout", "in [0, 1)", self.dropout)
