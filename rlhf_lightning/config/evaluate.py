"""The evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_lightning.config.checks import require
from rlhf_lightning.config.reward_source import RewardPartConfig

SKIP = "skip"
"""In `evaluate.models`: a preset's model that is not wanted. Hydra cannot take an entry away."""


@dataclass
class EvaluateConfig:
    """What is measured on held-out prompts after training. conf/evaluate/default.yaml overrides `batch_size`."""

    models: dict[str, str | None] = field(
        default_factory=lambda: {"base": None, "sft": None, "ppo": None}
    )
    """Name → run directory, artifact or Hugging Face folder, `none` (the model's own weights); null: the run of that
    stage, base being what SFT started from; `skip`: not this one."""
    reward: str | None = None
    """Reward model of the learned part of reward_source; null: the one that PPO was trained against."""
    known: dict[str, RewardPartConfig] = field(default_factory=dict)
    """Name → a score that training need not see (kind function or model, as in reward_source.parts): measured for every
    model on the same prompts, and compared with `reference`."""
    reference: str = "sft"
    """Name of the model that KL is measured against, and gains. Default: what PPO started from, as in its KL."""
    prompts: int = 500
    """Held-out prompts (test split). Default: the 95 % interval of a win rate is then about ± 0.04 at most."""
    samples_shown: int = 12
    """Conversations side by side in the report; habit."""
    batch_size: int = 256
    """Responses sampled at once per device; size."""
    max_response_tokens: int = 36
    """Tokens of a response, EOS included; nano, as ppo.max_response_tokens."""
    temperature: float = 1.0
    """Divides the logits in sampling, and in the log-probabilities of KL. 1: the policy itself; else what
    ppo.temperature was."""

    def __post_init__(self) -> None:
        self.models = {name: model for name, model in self.models.items() if model != SKIP}
        for key in ("prompts", "batch_size", "max_response_tokens"):
            require(getattr(self, key) >= 1, f"evaluate.{key}", ">= 1", getattr(self, key))
        require(self.temperature > 0, "evaluate.temperature", "> 0", self.temperature)
        require(self.samples_shown >= 0, "evaluate.samples_shown", ">= 0", self.samples_shown)
        require(
            self.reference in self.models,
            "evaluate.reference",
            f"one of evaluate.models {sorted(self.models)}",
            self.reference,
        )
        for name, part in self.known.items():
            key = f"evaluate.known.{name}"
            require(part.kind != "learned", f"{key}.kind", "one of function, model", part.kind)
            require(part.weight == 1, f"{key}.weight", "1: it is measured as it is", part.weight)
