"""What the score of a response comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from rlhf_lightning.config.checks import require
from rlhf_lightning.errors import UserError

KINDS = ("learned", "function", "model")
OF_KIND = {
    "learned": ("members", "combine", "coef", "end_with_eos"),
    "function": ("target", "args"),
    "model": (
        "path",
        "revision",
        "dtype",
        "batch_size",
        "max_length",
        "too_long",
        "reads",
        "chat_template",
        "trust_remote_code",
    ),
}
"""Kind → the settings that only it reads; one that is set where nobody reads it is refused."""


@dataclass
class RewardPartConfig:
    """One part of the score; conf/reward_source/*.yaml name usual sets of parts."""

    kind: str = "function"
    """learned: the reward stage's model; function: any importable function of prompt and response; model: a reward
    model of other making, as it is."""
    weight: float = 1.0
    """The score is the sum over parts of weight · part. A weight of 0 is refused: leave the part out.
    Default: the part as it is."""
    members: int = 1
    """learned: reward models of other seeds (weights and data order) that judge together; each is a run of its own.
    4 or 5 are usual (Coste et al., arXiv:2310.02743)."""
    combine: str = "mean"
    """learned, of several members: mean | worst (the smallest) | uncertainty (mean − coef · standard deviation)."""
    coef: float = 1.0
    """learned, combine=uncertainty: standard deviations that disagreement costs. Habit; it is in the score's unit."""
    end_with_eos: bool = False
    """learned: read a response that was cut off as one that ends there, with EOS behind it. A reward model has learned
    from completions with EOS; what it says of one without may be anything. It needs a token more of the context.
    false: the policy's tokens as they are. ppo.missing_eos then says what becomes of the score in training."""
    target: str | None = None
    """function: import path of f(prompt, response) -> float, or of a class whose instances are that. One that has a
    parameter `record` also gets the prompt's source record."""
    args: dict[str, Any] = field(default_factory=dict)
    """function: keyword arguments that are bound to the function, or given to the class."""
    path: str | None = None
    """model: hub id or folder of an AutoModelForSequenceClassification with one label, and its tokenizer; safetensors
    only. An answer that was cut off is read like any other."""
    reads: str = "chat"
    """model: chat: the conversation as a chat template writes it. pair: a pair of texts, as encoders were often trained
    to: all that was said before the answer, messages with an empty line between them, and the answer."""
    chat_template: str | None = None
    """model, reads=chat: file with a Jinja chat template. null: that of the model's tokenizer."""
    revision: str | None = None
    """model: hub revision to pin."""
    dtype: str = "float32"
    """model: parameter dtype: float32 | bfloat16 | float16."""
    batch_size: int = 32
    """model: conversations of one forward pass per device; size."""
    max_length: int | None = None
    """model: tokens of prompt and response together; null: the context that its config and tokenizer state."""
    too_long: str = "cut"
    """model: what a conversation beyond `max_length` gets. cut: its oldest tokens (but BOS) are not read, and it is
    counted in rollout/score_NAME_too_long; error: the run ends."""
    trust_remote_code: bool = False
    """model: run code that comes with it. Off unless you turn it on."""

    def __post_init__(self) -> None:
        require(self.kind in KINDS, "kind", f"one of {', '.join(KINDS)}", self.kind)
        finite = math.isfinite(self.weight) and self.weight != 0
        require(finite, "weight", "a number other than 0 (leave the part out)", self.weight)
        self._require_own_settings()
        require(
            self.combine in ("mean", "worst", "uncertainty"),
            "combine",
            "one of mean, worst, uncertainty",
            self.combine,
        )
        require(self.members >= 1, "members", ">= 1", self.members)
        combined = self.members > 1 or self.combine == "mean"
        require(combined, "combine", "left alone where members is 1", self.combine)
        require(0 <= self.coef < math.inf, "coef", ">= 0", self.coef)
        read = self.combine == "uncertainty" or self.coef == 1
        require(read, "coef", "left alone unless combine is uncertainty", self.coef)
        require(self.batch_size >= 1, "batch_size", ">= 1", self.batch_size)
        length = self.max_length
        require(length is None or length >= 1, "max_length", "null or >= 1", length)
        require(self.too_long in ("cut", "error"), "too_long", "one of cut, error", self.too_long)
        require(self.reads in ("chat", "pair"), "reads", "one of chat, pair", self.reads)
        template, rule = self.chat_template, "null where reads is pair"
        require(template is None or self.reads == "chat", "chat_template", rule, template)
        dtypes = ("float32", "bfloat16", "float16")
        require(self.dtype in dtypes, "dtype", f"one of {', '.join(dtypes)}", self.dtype)

    def without_template(self, key: str) -> str:
        """What is said of a model that is to read conversations and has no template for them."""
        return (
            f"{key}.path must have a tokenizer with a chat template, got {self.path!r} without one"
            f" ({key}.chat_template=FILE gives it one; {key}.reads=pair needs none)"
        )

    def _require_own_settings(self) -> None:
        """What the kind needs is there, and nothing that only another kind reads."""
        require(self.kind != "function" or self.target is not None, "target", "given", self.target)
        require(self.kind != "model" or self.path is not None, "path", "given", self.path)
        untouched: dict[str, Any] = {f.name: f.default for f in fields(self)}
        untouched["args"] = {}
        for kind, names in OF_KIND.items():
            for name in names if kind != self.kind else ():
                got, rule = getattr(self, name), f"left alone where kind is {self.kind}"
                require(got == untouched[name], name, rule, got)


@dataclass
class RewardSourceConfig:
    """What PPO maximises and `task=evaluate` reports as the score: a weighted sum of parts."""

    parts: dict[str, RewardPartConfig] = field(default_factory=dict)
    """By name; empty: the reward stage's model alone, as the part `learned`."""
    member: int = 0
    """`task=reward` alone: which member of the ensemble is trained, 0 being the first. A pipeline trains them all."""

    def __post_init__(self) -> None:
        if not self.parts:
            self.parts = {"learned": RewardPartConfig(kind="learned")}
        learned = [name for name, part in self.parts.items() if part.kind == "learned"]
        if len(learned) > 1:
            raise UserError(
                "reward_source.parts must have at most one part of kind learned (members makes it an ensemble),"
                f" got {learned}"
            )
        allowed = f"in 0..{self.members - 1} (one of the ensemble's members)"
        require(
            0 <= self.member < max(self.members, 1), "reward_source.member", allowed, self.member
        )

    @property
    def learned(self) -> RewardPartConfig | None:
        """The part that the reward stage trains; None: PPO needs no reward stage."""
        return next((part for part in self.parts.values() if part.kind == "learned"), None)

    @property
    def members(self) -> int:
        """Reward models that the reward stage trains for it; 0 without a learned part."""
        return 0 if self.learned is None else self.learned.members

    @property
    def roles(self) -> list[str]:
        """What its reward models are called among the parents of a stage: reward, reward.1, reward.2, ..."""
        return [role_of(member) for member in range(self.members)]


def role_of(member: int) -> str:
    """The parent role of one member of an ensemble."""
    return "reward" if member == 0 else f"reward.{member}"
