"""`task=generate`: samples from a policy for a file of prompts, or for one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlhf_lightning.config.checks import require

if TYPE_CHECKING:
    from rlhf_lightning.config.root import RootConfig


@dataclass
class GenerateInitConfig:
    """Which models."""

    policy: str | None = None
    """Run directory, artifact, Hugging Face folder, `none` (the model's own weights); null: the model's own weights
    where model.path is set, else the PPO run of the same command line."""
    reward: str | None = None
    """Reward model that is the learned part of reward_source: run directory, artifact or Hugging Face folder. null: no
    scores, unless reward_source has no learned part; none: no scores."""


@dataclass
class GenerateConfig:
    """How responses are drawn; what for and where to are the root's `input`, `prompt` and `output`."""

    init: GenerateInitConfig = field(default_factory=GenerateInitConfig)
    """Which models speak and score; null where nothing is said."""
    samples: int = 1
    """Responses for each prompt."""
    max_response_tokens: int = 36
    """Tokens of a response, EOS included. Default: that of the evaluation."""
    max_prompt_tokens: int | None = None
    """A longer prompt is left out and counted, never cut; null: what model.context_length leaves beside
    max_response_tokens."""
    temperature: float = 1.0
    """Softmax temperature; 0: always the likeliest token (greedy). Default: the policy itself;
    else what ppo.temperature was."""
    batch_size: int = 64
    """Responses sampled at once; size. Which response comes out does not depend on it (but for rounding)."""
    overwrite: bool = False
    """Replace an `output` that is there."""

    def __post_init__(self) -> None:
        for key in ("samples", "max_response_tokens", "batch_size"):
            require(getattr(self, key) >= 1, f"generate.{key}", ">= 1", getattr(self, key))
        require(self.temperature >= 0, "generate.temperature", ">= 0", self.temperature)
        require(
            self.max_prompt_tokens is None or self.max_prompt_tokens >= 1,
            "generate.max_prompt_tokens",
            "null or >= 1",
            self.max_prompt_tokens,
        )


def check_generate(root: RootConfig) -> None:
    """Rules between `generate` and the rest.

    Raises: UserError with the dotted key, what was got and what is allowed.
    """
    if root.task != "generate":
        for key in ("input", "output", "prompt"):
            value = getattr(root, key)
            require(value is None, key, f"null where task is {root.task}", value)
        return
    require(
        root.run_dir is None, "run_dir", "null where task is generate (use output)", root.run_dir
    )
    require(root.input is None or root.prompt is None, "prompt", "null beside input", root.prompt)
    require(
        root.input is not None or root.prompt is not None,
        "input",
        "a file of prompts, or prompt a text, where task is generate",
        root.input,
    )
    require(root.prompt is None or root.prompt.strip() != "", "prompt", "some text", root.prompt)
    hp, context = root.generate, root.model.context_length
    tokens = hp.max_response_tokens + (hp.max_prompt_tokens or 1)
    require(
        tokens <= context,
        "generate.max_prompt_tokens + generate.max_response_tokens",
        f"<= model.context_length={context}",
        tokens,
    )
    key, given, judges = "generate.init.reward", hp.init.reward, root.reward_source.members
    named = given not in (None, "none")
    require(
        judges > 0 or not named, key, "null or none where reward_source has no learned part", given
    )
    require(judges < 2 or not named, key, "null or none where reward_source is an ensemble", given)
