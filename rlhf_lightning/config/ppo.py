"""PPO."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlhf_lightning.config.checks import require
from rlhf_lightning.config.lora import LoRAConfig
from rlhf_lightning.config.training import PPOInitConfig, ScheduleConfig


@dataclass
class AdaptiveKLConfig:
    """Proportional controller of the KL coefficient [Z]."""

    enabled: bool = False
    """Whether β moves. Default: fixed, as in [I]."""
    target: float = 6.0
    """Per-sequence KL (k1, nats) aimed at [Z]."""
    horizon: int = 10_000
    """Episodes; [Z]."""

    def __post_init__(self) -> None:
        require(self.target > 0, "ppo.adaptive_kl.target", "> 0", self.target)
        require(self.horizon >= 1, "ppo.adaptive_kl.horizon", ">= 1", self.horizon)
        for key in () if self.enabled else ("target", "horizon"):
            got, rule = getattr(self, key), "left alone where ppo.adaptive_kl.enabled is false"
            require(got == getattr(AdaptiveKLConfig, key), f"ppo.adaptive_kl.{key}", rule, got)


@dataclass
class PTXConfig:
    """PPO-ptx: language modelling on pretraining text beside PPO [I]."""

    coef: float = 0.0
    """Weight of the text loss; 27.8 in [I], 0 is plain PPO."""
    examples_per_episode: float = 1.0
    """Documents for each episode, at least one for each minibatch; 8 in [I]."""

    def __post_init__(self) -> None:
        require(self.coef >= 0, "ppo.ptx.coef", ">= 0", self.coef)
        require(
            self.examples_per_episode > 0,
            "ppo.ptx.examples_per_episode",
            "> 0",
            self.examples_per_episode,
        )


@dataclass
class PPOConfig:
    """PPO against a score (`reward_source`).

    conf/ppo/*.yaml override many of these: ppo=default (sized for the built-in world) has 20 iterations, 2 epochs and
    kl_coef 0.2; ppo=instructgpt and ppo=tldr have the papers' numbers, but not their lengths.
    """

    init: PPOInitConfig = field(default_factory=PPOInitConfig)
    """Policy (and reference), and reward model; null: the runs of sft and reward."""
    lora: LoRAConfig | None = None
    """Train adapters only: the reference is then the policy with its adapter off, not a copy.
    null: all weights, as in [I]."""
    value: str = "auto"
    """Where V comes from. separate: a model of its own, started from the reward model [I]; adapter: an adapter and a
    head on the policy's backbone, started from the reward model's where it has the same backbone (needs ppo.lora);
    shared: a head on the policy's own hidden states, which starts at 0; auto: adapter with LoRA, else separate.
    Not with rloo, which has no V."""
    advantage: str = "gae"
    """gae: from the value model [I]; rloo: reward minus the mean reward of the prompt's other samples, no value model
    (Ahmadian et al. 2024, arXiv:2402.14740): gamma, gae_lambda, value_coef and value_clip_range then have no effect;
    value, value_lr and critic_warmup_iterations are refused."""
    samples_per_prompt: int = 1
    """Responses to each prompt of an iteration; rloo needs 2 or more. 1 in [I]."""
    share_prompt: bool = False
    """Also the update computes a prompt once for its samples (sampling, reference and reward model always do): the same
    loss and gradient, and faster where prompts are long. Minibatches then hold whole groups of samples_per_prompt. For
    rloo, without model.gradient_checkpointing; where a strategy spreads gradients, with ppo.lora (two passes meet in
    one backward pass, and what it spreads would be whole until the second)."""
    iterations: int = 60
    """Rollout + update rounds; 20 in ppo=default (nano)."""
    episodes_per_iteration: int = 128
    """Responses of one iteration over all devices: prompts × samples_per_prompt. Nano; 512 in [I], [N]."""
    rollout_batch_size: int = 128
    """Episodes sampled and scored at once per device; size."""
    epochs: int = 4
    """Passes over an iteration's episodes; 4 in [S] and [N], 1 in [I], 2 in ppo=default (nano)."""
    minibatch_size: int = 64
    """Episodes of one optimizer step over all devices; must divide episodes_per_iteration. 64 in [I]."""
    micro_batch_size: int = 64
    """Episodes of one forward pass per device, and rows of PPO-ptx's text (of max_prompt_tokens + max_response_tokens
    tokens, with logits for all of them); size: how a minibatch is split never changes its gradient."""
    max_prompt_tokens: int = 104
    """A longer prompt is dropped (or cut, as mix.over_long says) and counted; nano. It also chooses the prompts of
    collection and evaluation."""
    max_response_tokens: int = 36
    """Tokens of a response, EOS included; sampling stops there. Nano."""
    temperature: float = 1.0
    """Divides the logits in sampling, in the reference and in the update alike. 1 in [I], 0.7 in [N]."""
    kl_coef: float = 0.05
    """β of r_t = -β·kl_k1_t. [I] 0.02, TL;DR 0.03-0.05, ppo=default 0.2 (nano)."""
    adaptive_kl: AdaptiveKLConfig = field(default_factory=AdaptiveKLConfig)
    """β that moves towards a target [Z]; off."""
    gamma: float = 1.0
    """Discount of a later token's reward. 1: none, a response counts as a whole [I]."""
    gae_lambda: float = 0.95
    """λ of GAE: 0 trusts the value model, 1 the rewards that came. [S], [N]."""
    clip_range: float = 0.2
    """ε: the policy ratio is clipped to 1 ± ε. Schulman et al. 2017, arXiv:1707.06347, and [I]."""
    value_clip_range: float = 0.2
    """A new value is clipped to the old one ± this, in units of the return [N]."""
    value_coef: float = 0.1
    """Weight of the value loss [S], [N]. One global norm is clipped, so it also says what share of it V has."""
    entropy_coef: float = 0.0
    """Weight of the mean token entropy (nats) that is added to the objective. 0: none."""
    whiten_advantages: bool = True
    """Mean 0 and deviation 1 over all real tokens of an iteration [N]."""
    whiten_rewards: bool = False
    """Divide token rewards by their deviation over the iteration; scaled only, never centred. Off in [N]."""
    missing_eos: str = "replace"
    """replace: a response without EOS gets missing_eos_score; subtract: the penalty is taken off; keep.
    replace is [N]'s "EOS trick"."""
    missing_eos_score: float = -1.0
    """The score itself (replace), or what is added (subtract: -1 takes 1 off); not with keep. -1 in [N]."""
    score_clip: float | None = None
    """Scores are clipped to ± this, after normalisation; the clipped share is logged. null: no clip."""
    normalize_scores: bool = False
    """Divide scores by their running standard deviation (mean kept)."""
    length_penalty: float = 0.0
    """Taken off the score for every response token. 0: the score is the score."""
    critic_warmup_iterations: int = 0
    """First iterations in which only the value model learns (with ppo.value=shared, only its head). 0, as in [I]."""
    target_kl: float | None = None
    """Stop an iteration's epochs when approx_kl of a minibatch exceeds 1.5 × this (nats per token).
    null: never."""
    ratio_spike: float | None = None
    """Skip (and count) a minibatch whose mean ratio exceeds this, > 1; 10 in trlX's recipes."""
    ema_decay: float | None = None
    """Exponential moving average of the policy, taken after each iteration and exported in its place. It begins at the
    policy's first weights, of which decay^iterations is left in the end. 0.992 in [I]."""
    stop_at_kl: float | None = None
    """End the run after the first iteration whose responses have more KL (k1, nats per response) than this; null:
    never. Early stopping, to which Gao et al. 2022 (arXiv:2210.10760) liken the penalty; seeds then end equally far
    away."""
    stop_at_kl_window: int = 1
    """Iterations whose mean KL is held against stop_at_kl, from the first that has so many behind it. The KL of few
    responses is noisy: alone, its first peak would end the run."""
    reference_refresh_every: int | None = None
    """Iterations after which the reference becomes a copy of the policy. null: never, as in [I]."""
    old_logprobs: str = "auto"
    """sampled: those of the sampler; recomputed: one more forward pass; auto: sampled in fp32, else recomputed."""
    ratio_tolerance: float | None = None
    """Allowed |ratio - 1| on an iteration's first minibatch: in fp32 the largest (null: 1e-4), in half precision the
    mean (null: 0.2), since its rounding alone moves single tokens by more than many mistakes do."""
    ptx: PTXConfig = field(default_factory=PTXConfig)
    """Pretraining text beside PPO; off."""
    optimizer: Any = None
    """`_target_` node of a torch optimizer, from conf/optimizer: adam, with eps 1e-5 as in [N]."""
    value_lr: float | None = None
    """Learning rate of the value model; null: the optimizer's."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over iterations, constant within one. From conf/schedule: linear to 0 [S], [N]."""
    grad_clip: float = 1.0
    """Largest norm of the gradient, one over policy and value; habit."""
    eval_every: int = 10
    """Iterations between validations on fixed prompts; nano."""
    eval_prompts: int = 96
    """Prompts of the validation split that are answered at each validation: always the same ones; nano."""
    sample_prompts: int = 8
    """Rows of the sample tables: the same fixed prompts over time; habit."""
    checkpoint_every: int = 10
    """Iterations between checkpoints; no part of a run's identity. Nano."""

    @property
    def prompts_per_iteration(self) -> int:
        """Different prompts of one iteration over all devices."""
        return self.episodes_per_iteration // self.samples_per_prompt

    @property
    def minibatches(self) -> int:
        """Optimizer steps of one epoch."""
        return self.episodes_per_iteration // self.minibatch_size

    @property
    def texts_per_iteration(self) -> int:
        """Documents of PPO-ptx for one iteration over all devices; 0 where it is off."""
        if self.ptx.coef == 0:
            return 0
        return round(self.episodes_per_iteration * self.ptx.examples_per_episode)

    @property
    def update_group_size(self) -> int:
        """Episodes that a minibatch holds together."""
        return self.samples_per_prompt if self.share_prompt else 1

    @property
    def value_kind(self) -> str:
        """none, separate, adapter or shared."""
        if self.advantage == "rloo":
            return "none"
        if self.value == "auto":
            return "separate" if self.lora is None else "adapter"
        return self.value

    def __post_init__(self) -> None:
        for key in (
            "samples_per_prompt",
            "iterations",
            "episodes_per_iteration",
            "rollout_batch_size",
            "epochs",
            "minibatch_size",
            "micro_batch_size",
            "max_prompt_tokens",
            "max_response_tokens",
            "eval_every",
            "eval_prompts",
            "checkpoint_every",
            "stop_at_kl_window",
        ):
            require(getattr(self, key) >= 1, f"ppo.{key}", ">= 1", getattr(self, key))
        for key in (
            "kl_coef",
            "value_coef",
            "entropy_coef",
            "length_penalty",
            "critic_warmup_iterations",
            "sample_prompts",
        ):
            require(getattr(self, key) >= 0, f"ppo.{key}", ">= 0", getattr(self, key))
        for key in ("gamma", "gae_lambda"):
            require(0 <= getattr(self, key) <= 1, f"ppo.{key}", "in [0, 1]", getattr(self, key))
        for key in ("clip_range", "value_clip_range", "temperature", "grad_clip"):
            require(getattr(self, key) > 0, f"ppo.{key}", "> 0", getattr(self, key))
        for key in (
            "score_clip",
            "target_kl",
            "stop_at_kl",
            "ratio_tolerance",
            "value_lr",
            "reference_refresh_every",
        ):
            value = getattr(self, key)
            require(value is None or value > 0, f"ppo.{key}", "null or > 0", value)
        require(
            self.stop_at_kl_window == 1 or self.stop_at_kl is not None,
            "ppo.stop_at_kl_window",
            "1 where ppo.stop_at_kl is null",
            self.stop_at_kl_window,
        )
        spike = self.ratio_spike
        require(spike is None or spike > 1, "ppo.ratio_spike", "null or > 1", spike)
        require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            "ppo.ema_decay",
            "null or in (0, 1)",
            self.ema_decay,
        )
        require(
            self.value in ("auto", "separate", "adapter", "shared"),
            "ppo.value",
            "one of auto, separate, adapter, shared",
            self.value,
        )
        require(
            self.value != "adapter" or self.lora is not None,
            "ppo.value",
            "separate or shared where ppo.lora is null",
            self.value,
        )
        require(
            self.advantage in ("gae", "rloo"), "ppo.advantage", "one of gae, rloo", self.advantage
        )
        require(
            self.advantage == "gae" or self.samples_per_prompt >= 2,
            "ppo.samples_per_prompt",
            ">= 2 where ppo.advantage is rloo",
            self.samples_per_prompt,
        )
        require(
            not self.share_prompt or self.advantage == "rloo",
            "ppo.share_prompt",
            "false where ppo.advantage is gae",
            self.share_prompt,
        )
        for key in ("minibatch_size", "micro_batch_size"):
            size, group = getattr(self, key), self.update_group_size
            rule = f"a multiple of ppo.samples_per_prompt={group} where ppo.share_prompt is true"
            require(size % group == 0, f"ppo.{key}", rule, size)
        if self.advantage == "rloo":
            rule = "left alone where ppo.advantage is rloo (it has no value model)"
            require(self.value == "auto", "ppo.value", rule, self.value)
            warmup = self.critic_warmup_iterations
            require(warmup == 0, "ppo.critic_warmup_iterations", rule, warmup)
            require(self.value_lr is None, "ppo.value_lr", rule, self.value_lr)
        require(
            self.episodes_per_iteration % self.samples_per_prompt == 0,
            "ppo.samples_per_prompt",
            f"a divisor of ppo.episodes_per_iteration={self.episodes_per_iteration}",
            self.samples_per_prompt,
        )
        require(
            self.lora is None or self.lora.dropout == 0,
            "ppo.lora.dropout",
            "0 (the ratio would not be one)",
            self.lora and self.lora.dropout,
        )
        require(
            self.missing_eos in ("replace", "subtract", "keep"),
            "ppo.missing_eos",
            "one of replace, subtract, keep",
            self.missing_eos,
        )
        require(
            self.missing_eos != "keep" or self.missing_eos_score == PPOConfig.missing_eos_score,
            "ppo.missing_eos_score",
            "left alone where ppo.missing_eos is keep",
            self.missing_eos_score,
        )
        require(
            self.kl_coef > 0 or not self.adaptive_kl.enabled,
            "ppo.kl_coef",
            "> 0 where ppo.adaptive_kl.enabled is true (it multiplies)",
            self.kl_coef,
        )
        require(
            self.critic_warmup_iterations < self.iterations,
            "ppo.critic_warmup_iterations",
            f"< ppo.iterations={self.iterations}",
            self.critic_warmup_iterations,
        )
        require(
            self.old_logprobs in ("auto", "sampled", "recomputed"),
            "ppo.old_logprobs",
            "one of auto, sampled, recomputed",
            self.old_logprobs,
        )
        require(
            self.episodes_per_iteration % self.minibatch_size == 0,
            "ppo.minibatch_size",
            f"a divisor of ppo.episodes_per_iteration={self.episodes_per_iteration}",
            self.minibatch_size,
        )
        require(
            self.ptx.coef == 0 or self.texts_per_iteration >= self.minibatches,
            "ppo.ptx.examples_per_episode",
            f"enough for a document in each of an iteration's {self.minibatches} minibatches where ppo.ptx.coef > 0",
            self.ptx.examples_per_episode,
        )
        require(
            self.sample_prompts <= self.eval_prompts,
            "ppo.sample_prompts",
            f"<= ppo.eval_prompts={self.eval_prompts}",
            self.sample_prompts,
        )
