"""The reward model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlhf_lightning.config.checks import require
from rlhf_lightning.config.lora import LoRAConfig
from rlhf_lightning.config.model import ModelConfig
from rlhf_lightning.config.reward_source import RewardPartConfig
from rlhf_lightning.config.training import InitConfig, ScheduleConfig


@dataclass
class RewardConfig:
    """The reward model: K-wise loss over all pairs of one prompt.

    conf/reward/*.yaml override some of these: reward=default has 3200 prompts in batches of 8 (nano).
    """

    init: InitConfig = field(default_factory=InitConfig)
    """What the backbone starts from; null: the run of sft [I]. `none` needs completions=speakers."""
    model: ModelConfig | None = None
    """Another size for this role (`model@reward.model=nano`); null: the policy's."""
    lora: LoRAConfig | None = None
    """Train adapters and the head only; the artifact holds the merged weights and, beside them, the adapter.
    null: all weights, as in [I]."""
    completions: str = "policy"
    """policy: sampled from the current policy and ranked by the source's labelers; speakers: the source's own
    comparisons. Default: [I]."""
    rank_by: dict[str, RewardPartConfig] = field(default_factory=dict)
    """Functions (by name, with weights) that rank the policy's completions in the place of the sources' labelers: a
    score that is known, to learn from and to compare with. Empty: the sources' labelers."""
    prompts: int = 1600
    """Prompts with K completions each that are collected and trained on; nano. 33k in [I]."""
    eval_prompts: int = 200
    """Held-out prompts (validation split, and as many of the test split) for the accuracies; nano."""
    min_completions: int = 4
    """Smallest K of completions=policy; [I] 4."""
    max_completions: int = 9
    """Largest K of completions=policy; [I] 9."""
    max_response_tokens: int = 36
    """Tokens of a sampled completion (completions=policy), EOS included; nano, as ppo.max_response_tokens."""
    temperature: float = 1.0
    """Divides the logits where completions are sampled. 1: the policy itself, as PPO samples it."""
    epochs: int = 1
    """[I] 1: more overfits."""
    global_batch_size: int = 32
    """Prompts (with all their completions) of one optimizer step over all devices; [I] 64, reward=default 8 (nano)."""
    micro_batch_size: int = 32
    """Prompts (with all their completions) of one forward pass per device, in training and in scoring; size."""
    rollout_batch_size: int = 256
    """Completions sampled at once per device (completions=policy); size."""
    share_prompt: bool = False
    """Compute a prompt once for all its completions instead of once for each: the same scores and gradients, faster
    where prompts are long. Needs attention that takes a 4-D mask (sdpa, eager)."""
    head_scale: float = 1.0
    """Factor on the standard deviation 1/√(d+1) of the new head's weights [S]; an earlier reward model keeps
    its own head. 0: all scores are equal at first; where comparisons are few, what is random is hardly unlearned."""
    margin: float = 0.0
    """Added per rank of distance to the score difference that a pair must reach, in score units (Touvron et al. 2023,
    arXiv:2307.09288). 0: none, as in [I]."""
    centering: float = 0.0
    """Weight of the penalty on squared mean score of a pair; keeps scores near 0. 0: none, as in [I]."""
    foreign_completions: int = 0
    """Answers to other prompts that each prompt of training gets beside its completions, as its worst: what does not
    answer the prompt loses (Liu et al. 2024, arXiv:2409.13156). 0: none, as in [I]."""
    label_smoothing: float = 0.0
    """Assumed share of flipped labels. 0: none, as in [I]."""
    calibration_demonstrations: int = 512
    """Demonstrations whose mean score the bias makes 0 [I]; all, where there are fewer. Habit."""
    calibrate_gain: bool = False
    """Also scale scores to unit standard deviation on demonstrations. The bias always makes their mean 0 [I]."""
    optimizer: Any = None
    """`_target_` node of a torch optimizer, from conf/optimizer: adamw."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over optimizer steps. From conf/schedule: cosine to 10 % [I]."""
    grad_clip: float = 1.0
    """Largest global norm of the gradient; habit."""
    eval_every: int = 25
    """Optimizer steps between validations; nano."""
    checkpoint_every: int = 25
    """Optimizer steps between checkpoints; no part of a run's identity. Nano."""

    @property
    def context_key(self) -> str:
        """The setting that says how much the reward model reads at once."""
        return f"{'model' if self.model is None else 'reward.model'}.context_length"

    def __post_init__(self) -> None:
        require(
            self.completions in ("policy", "speakers"),
            "reward.completions",
            "one of policy, speakers",
            self.completions,
        )
        for key in (
            "prompts",
            "eval_prompts",
            "max_response_tokens",
            "epochs",
            "global_batch_size",
            "micro_batch_size",
            "rollout_batch_size",
            "eval_every",
            "checkpoint_every",
            "calibration_demonstrations",
        ):
            require(getattr(self, key) >= 1, f"reward.{key}", ">= 1", getattr(self, key))
        require(
            self.foreign_completions >= 0,
            "reward.foreign_completions",
            ">= 0",
            self.foreign_completions,
        )
        for name, part in self.rank_by.items():
            require(part.kind == "function", f"reward.rank_by.{name}.kind", "function", part.kind)
        require(
            not self.rank_by or self.completions == "policy",
            "reward.rank_by",
            "left out where reward.completions is speakers",
            sorted(self.rank_by),
        )
        require(self.min_completions >= 2, "reward.min_completions", ">= 2", self.min_completions)
        require(
            self.max_completions >= self.min_completions,
            "reward.max_completions",
            ">= reward.min_completions",
            self.max_completions,
        )
        require(self.temperature > 0, "reward.temperature", "> 0", self.temperature)
        require(
            0 <= self.label_smoothing < 0.5,
            "reward.label_smoothing",
            "in [0, 0.5)",
            self.label_smoothing,
        )
        for key in ("head_scale", "margin", "centering"):
            require(getattr(self, key) >= 0, f"reward.{key}", ">= 0", getattr(self, key))
        require(self.grad_clip > 0, "reward.grad_clip", "> 0", self.grad_clip)
