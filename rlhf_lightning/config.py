"""Every setting of this project: its type, meaning, unit, and where its default comes from.

Foreign classes (optimizers, Trainer, loggers, callbacks) stay plain `_target_` nodes and are typed `Any` here;
`rlhf_lightning.compose` checks their keys against the target's signature.
Sources in brackets are those of docs: [I] InstructGPT, [S] Learning to summarize, [Z] Ziegler et al.,
[N] N implementation details (summarization). "nano" marks a default chosen by measurement for the built-in world.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from rlhf_lightning.errors import UserError

MISSING: Any = "???"
"""OmegaConf's mark for a value that the user must choose."""

STAGES = ("pretrain", "sft", "reward", "ppo")
TASKS = (*STAGES, "evaluate", "pipeline", "runs")


def _require(ok: bool, key: str, rule: str, got: object) -> None:
    if not ok:
        raise UserError(f"{key} must be {rule}, got {got!r}")


@dataclass
class ModelConfig:
    """Size and family of a model. Weights come from `path`, or are random with the shape of `architecture`."""

    name: str = MISSING
    """Short name, used in run names."""
    path: str | None = None
    """Hub id or folder with safetensors; None builds a random model from `architecture`."""
    revision: str | None = None
    """Hub revision to pin."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Keys of the transformers config of `model_type` (its own key `model_type` included)."""
    vocab_size: int = 768
    """Size of the byte-level BPE that is trained on the mix's text where `path` is None."""
    context_length: int = 128
    """Tokens of prompt and response together that the model may see."""
    dtype: str = "float32"
    """Parameter dtype: float32 | bfloat16 | float16."""
    attention: str = "sdpa"
    """transformers' attn_implementation: sdpa | eager | flash_attention_2."""
    gradient_checkpointing: bool = False
    """Trade compute for activation memory."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Off unless you turn it on."""

    def __post_init__(self) -> None:
        _require(
            self.dtype in ("float32", "bfloat16", "float16"),
            "model.dtype",
            "one of float32, bfloat16, float16",
            self.dtype,
        )
        _require(
            self.attention in ("sdpa", "eager", "flash_attention_2"),
            "model.attention",
            "one of sdpa, eager, flash_attention_2",
            self.attention,
        )
        _require(self.context_length >= 8, "model.context_length", ">= 8", self.context_length)
        _require(
            self.vocab_size >= 300,
            "model.vocab_size",
            ">= 300 (256 bytes and the special tokens)",
            self.vocab_size,
        )
        _require(
            self.path is not None or "model_type" in self.architecture,
            "model.path",
            "a hub id or folder where model.architecture.model_type is absent",
            self.path,
        )


@dataclass
class SourceConfig:
    """One origin of records: a file or folder (`path`), or any importable class that is a `Source` (`target`)."""

    target: str | None = None
    """Import path of a class; called with `args`. See rlhf_lightning.data.mixture.Source."""
    path: str | None = None
    """Local file: .jsonl, .json, .csv, .parquet, each also .gz where it makes sense."""
    args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of `target`."""
    limit: int | None = None
    """Use at most this many records of each kind and split."""


@dataclass
class MixConfig:
    """Which corpora, with which weights."""

    name: str = MISSING
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """By name; a dict so that `mix.sources.mine.path=...` works from the command line."""
    weights: dict[str, float] = field(default_factory=dict)
    """Relative share of each source; a source that is absent here has weight 1."""
    validation_fraction: float = 0.05
    """Share of prompts (by hash of the prompt) held out for validation in sources without splits of their own."""
    test_fraction: float = 0.05
    """Share of prompts held out for the test split, likewise."""

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            _require(weight >= 0, f"mix.weights.{name}", ">= 0", weight)
            _require(
                name in self.sources, f"mix.weights.{name}", f"one of {sorted(self.sources)}", name
            )
        for key in ("validation_fraction", "test_fraction"):
            _require(0 <= getattr(self, key) < 0.5, f"mix.{key}", "in [0, 0.5)", getattr(self, key))


@dataclass
class ScheduleConfig:
    """Learning rate over a stage's optimizer steps: linear warm-up, then a shape down to `final_fraction`."""

    name: str = "cosine"
    """cosine | linear | constant"""
    warmup_fraction: float = 0.0
    """Share of all steps that warm up."""
    final_fraction: float = 0.1
    """Last learning rate as a share of the first. 0.1 is [I]'s; `constant` ignores nothing: it must be 1 there."""

    def __post_init__(self) -> None:
        _require(
            self.name in ("cosine", "linear", "constant"),
            "schedule.name",
            "one of cosine, linear, constant",
            self.name,
        )
        _require(
            0 <= self.warmup_fraction < 1,
            "schedule.warmup_fraction",
            "in [0, 1)",
            self.warmup_fraction,
        )
        _require(
            0 <= self.final_fraction <= 1,
            "schedule.final_fraction",
            "in [0, 1]",
            self.final_fraction,
        )
        _require(
            self.name != "constant" or self.final_fraction == 1,
            "schedule.final_fraction",
            "1 where schedule.name is constant",
            self.final_fraction,
        )


@dataclass
class InitConfig:
    """What a stage's weights start from."""

    policy: str | None = None
    """Run directory, artifact, Hugging Face folder, `none` (the model's own weights); null: the parent stage's run."""
    reward: str | None = None
    """PPO only: the reward model; the value model starts from it too."""


@dataclass
class SFTConfig:
    """Supervised fine-tuning, and pretraining (the same loss on raw text)."""

    stage: str = "sft"
    """sft | pretrain: prefix of this node's keys in messages and metrics."""
    init: InitConfig = field(default_factory=InitConfig)
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
            _require(getattr(self, key) >= 1, f"{self.stage}.{key}", ">= 1", getattr(self, key))
        _require(self.grad_clip > 0, f"{self.stage}.grad_clip", "> 0", self.grad_clip)
        _require(0 <= self.dropout < 1, f"{self.stage}.dropout", "in [0, 1)", self.dropout)


@dataclass
class RewardConfig:
    """The reward model: K-wise loss over all pairs of one prompt."""

    init: InitConfig = field(default_factory=InitConfig)
    model: ModelConfig | None = None
    """Another size for this role (`model@reward.model=nano`); null: the policy's."""
    completions: str = "policy"
    """policy: sampled from the current policy and ranked by the source's labelers; speakers: the source's own
    comparisons."""
    prompts: int = 1600
    """Prompts with K completions each that are collected and trained on."""
    eval_prompts: int = 200
    """Held-out prompts (validation split) for the accuracies."""
    min_completions: int = 4
    """Smallest K; [I] 4."""
    max_completions: int = 9
    """Largest K; [I] 9."""
    max_response_tokens: int = 36
    """Where completions are sampled."""
    temperature: float = 1.0
    epochs: int = 1
    """[I] 1: more overfits."""
    global_batch_size: int = 32
    """Prompts (with all their completions) of one optimizer step over all devices; [I] 64."""
    micro_batch_size: int = 32
    """Prompts of one forward pass per device."""
    rollout_batch_size: int = 256
    """Completions sampled or scored at once per device."""
    margin: float = 0.0
    """Added per rank of distance to the score difference that a pair must reach."""
    centering: float = 0.0
    """Weight of the penalty on squared mean score of a pair; keeps scores near 0."""
    label_smoothing: float = 0.0
    """Assumed share of flipped labels."""
    calibrate_gain: bool = False
    """Also scale scores to unit standard deviation on demonstrations. The bias always makes their mean 0 [I]."""
    optimizer: Any = None
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    grad_clip: float = 1.0
    eval_every: int = 25
    """Optimizer steps between validations."""
    checkpoint_every: int = 25

    def __post_init__(self) -> None:
        _require(
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
        ):
            _require(getattr(self, key) >= 1, f"reward.{key}", ">= 1", getattr(self, key))
        _require(self.min_completions >= 2, "reward.min_completions", ">= 2", self.min_completions)
        _require(
            self.max_completions >= self.min_completions,
            "reward.max_completions",
            ">= reward.min_completions",
            self.max_completions,
        )
        _require(self.temperature > 0, "reward.temperature", "> 0", self.temperature)
        _require(
            0 <= self.label_smoothing < 0.5,
            "reward.label_smoothing",
            "in [0, 0.5)",
            self.label_smoothing,
        )
        for key in ("margin", "centering"):
            _require(getattr(self, key) >= 0, f"reward.{key}", ">= 0", getattr(self, key))
        _require(self.grad_clip > 0, "reward.grad_clip", "> 0", self.grad_clip)


@dataclass
class AdaptiveKLConfig:
    """Proportional controller of the KL coefficient [Z]."""

    enabled: bool = False
    target: float = 6.0
    """Per-sequence KL (k1, nats) aimed at [Z]."""
    horizon: int = 10_000
    """Episodes; [Z]."""

    def __post_init__(self) -> None:
        _require(self.target > 0, "ppo.adaptive_kl.target", "> 0", self.target)
        _require(self.horizon >= 1, "ppo.adaptive_kl.horizon", ">= 1", self.horizon)


@dataclass
class PTXConfig:
    """PPO-ptx: language modelling on pretraining text beside PPO [I]."""

    coef: float = 0.0
    """Weight of the text loss; 27.8 in [I], 0 is plain PPO."""
    examples_per_episode: float = 1.0
    """Documents for each episode; 8 in [I]."""

    def __post_init__(self) -> None:
        _require(self.coef >= 0, "ppo.ptx.coef", ">= 0", self.coef)
        _require(
            self.examples_per_episode > 0,
            "ppo.ptx.examples_per_episode",
            "> 0",
            self.examples_per_episode,
        )


@dataclass
class PPOConfig:
    """PPO against the reward model."""

    init: InitConfig = field(default_factory=InitConfig)
    iterations: int = 60
    """Rollout + update rounds."""
    episodes_per_iteration: int = 128
    """Prompts (one response each) of one iteration over all devices."""
    rollout_batch_size: int = 128
    """Episodes sampled and scored at once per device."""
    epochs: int = 4
    """Passes over an iteration's episodes; 4 in [S] and [N]."""
    minibatch_size: int = 64
    """Episodes of one optimizer step over all devices; must divide episodes_per_iteration."""
    micro_batch_size: int = 64
    """Episodes of one forward pass per device; how a minibatch is split never changes its gradient."""
    max_prompt_tokens: int = 104
    max_response_tokens: int = 36
    temperature: float = 1.0
    """Divides the logits in sampling, in the reference and in the update alike."""
    kl_coef: float = 0.05
    """β of r_t = -β·kl_k1_t. [I] 0.02, TL;DR 0.03-0.05."""
    adaptive_kl: AdaptiveKLConfig = field(default_factory=AdaptiveKLConfig)
    gamma: float = 1.0
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    """Policy ratio clip."""
    value_clip_range: float = 0.2
    value_coef: float = 0.1
    """[S], [N]."""
    entropy_coef: float = 0.0
    whiten_advantages: bool = True
    whiten_rewards: bool = False
    """Scaled only, never centred."""
    missing_eos: str = "replace"
    """replace: a response without EOS gets missing_eos_score; subtract: the penalty is taken off; keep."""
    missing_eos_score: float = -1.0
    """The score itself (replace), or what is added (subtract: -1 takes 1 off)."""
    score_clip: float | None = None
    """Scores are clipped to ± this, after normalisation; the clipped share is logged."""
    normalize_scores: bool = False
    """Divide scores by their running standard deviation (mean kept)."""
    length_penalty: float = 0.0
    """Taken off the score for every response token."""
    critic_warmup_iterations: int = 0
    """First iterations in which only the value model learns."""
    target_kl: float | None = None
    """Stop an iteration's epochs when approx_kl of a minibatch exceeds 1.5 × this."""
    ratio_spike: float | None = None
    """Skip (and count) a minibatch whose mean ratio exceeds this; 10 in trlX's recipes."""
    ema_decay: float | None = None
    """Exponential moving average of the policy, exported in its place; 0.992 in [I]."""
    reference_refresh_every: int | None = None
    """Iterations after which the reference becomes a copy of the policy."""
    old_logprobs: str = "auto"
    """sampled: those of the sampler; recomputed: one more forward pass; auto: sampled in fp32, else recomputed."""
    ratio_tolerance: float | None = None
    """Largest |ratio - 1| on an iteration's first minibatch; null: 1e-4 in fp32, 0.05 in half precision."""
    ptx: PTXConfig = field(default_factory=PTXConfig)
    optimizer: Any = None
    value_lr: float | None = None
    """Learning rate of the value model; null: the optimizer's."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    grad_clip: float = 1.0
    """One global norm over policy and value."""
    eval_every: int = 10
    """Iterations between validations on fixed prompts."""
    eval_prompts: int = 96
    sample_prompts: int = 8
    """Rows of the sample tables: the same fixed prompts over time."""
    checkpoint_every: int = 10
    """Iterations between checkpoints."""

    def __post_init__(self) -> None:
        for key in (
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
        ):
            _require(getattr(self, key) >= 1, f"ppo.{key}", ">= 1", getattr(self, key))
        for key in (
            "kl_coef",
            "value_coef",
            "entropy_coef",
            "length_penalty",
            "critic_warmup_iterations",
            "sample_prompts",
        ):
            _require(getattr(self, key) >= 0, f"ppo.{key}", ">= 0", getattr(self, key))
        for key in ("gamma", "gae_lambda"):
            _require(0 <= getattr(self, key) <= 1, f"ppo.{key}", "in [0, 1]", getattr(self, key))
        for key in ("clip_range", "value_clip_range", "temperature", "grad_clip"):
            _require(getattr(self, key) > 0, f"ppo.{key}", "> 0", getattr(self, key))
        for key in (
            "score_clip",
            "target_kl",
            "ratio_spike",
            "ratio_tolerance",
            "value_lr",
            "reference_refresh_every",
        ):
            value = getattr(self, key)
            _require(value is None or value > 0, f"ppo.{key}", "null or > 0", value)
        _require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            "ppo.ema_decay",
            "null or in (0, 1)",
            self.ema_decay,
        )
        _require(
            self.missing_eos in ("replace", "subtract", "keep"),
            "ppo.missing_eos",
            "one of replace, subtract, keep",
            self.missing_eos,
        )
        _require(
            self.old_logprobs in ("auto", "sampled", "recomputed"),
            "ppo.old_logprobs",
            "one of auto, sampled, recomputed",
            self.old_logprobs,
        )
        _require(
            self.episodes_per_iteration % self.minibatch_size == 0,
            "ppo.minibatch_size",
            f"a divisor of ppo.episodes_per_iteration={self.episodes_per_iteration}",
            self.minibatch_size,
        )
        _require(
            self.sample_prompts <= self.eval_prompts,
            "ppo.sample_prompts",
            f"<= ppo.eval_prompts={self.eval_prompts}",
            self.sample_prompts,
        )


@dataclass
class EvaluateConfig:
    """What is measured on held-out prompts after training."""

    models: dict[str, str | None] = field(
        default_factory=lambda: {"base": None, "sft": None, "ppo": None}
    )
    """Name → run directory, artifact or Hugging Face folder; null: the run of that stage (base is pretrain's)."""
    reward: str | None = None
    """Reward model; null: the reward stage's run."""
    reference: str = "sft"
    """Name of the model that KL is measured against."""
    prompts: int = 500
    """Held-out prompts (test split)."""
    samples_shown: int = 12
    """Conversations side by side in the report."""
    batch_size: int = 256
    """Responses sampled at once per device."""
    max_response_tokens: int = 36
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for key in ("prompts", "batch_size", "max_response_tokens"):
            _require(getattr(self, key) >= 1, f"evaluate.{key}", ">= 1", getattr(self, key))
        _require(self.temperature > 0, "evaluate.temperature", "> 0", self.temperature)
        _require(self.samples_shown >= 0, "evaluate.samples_shown", ">= 0", self.samples_shown)
        _require(
            self.reference in self.models,
            "evaluate.reference",
            f"one of evaluate.models {sorted(self.models)}",
            self.reference,
        )


@dataclass
class PipelineConfig:
    """The chain of stages."""

    rounds: int = 1
    """Collection → reward → PPO, repeated from the current policy."""

    def __post_init__(self) -> None:
        _require(self.rounds >= 1, "pipeline.rounds", ">= 1", self.rounds)


@dataclass
class StrategyConfig:
    """How a model is spread over processes."""

    name: str = "single"
    """single (this version runs one process)."""

    def __post_init__(self) -> None:
        _require(self.name == "single", "strategy.name", "single", self.name)


@dataclass
class RootConfig:
    """The whole tree."""

    task: str = "pipeline"
    """What to run: pretrain | sft | reward | ppo | evaluate | pipeline | runs."""
    seed: int = 0
    """Seeds weights, data order and sampling of every stage."""
    outputs: str = "outputs"
    """Where runs are kept, relative to the working directory."""
    run_dir: str | None = None
    """This run (all of a pipeline's stages under it) goes there instead."""
    dry_run: bool = False
    """Only say for every stage: reused, continued or new."""
    model: ModelConfig = MISSING
    mix: MixConfig = MISSING
    pretrain: SFTConfig = MISSING
    sft: SFTConfig = MISSING
    reward: RewardConfig = MISSING
    ppo: PPOConfig = MISSING
    evaluate: EvaluateConfig = MISSING
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    trainer: Any = None
    """Keys of lightning.pytorch.Trainer: where and how, never how long."""
    logger: Any = None
    """Name → `_target_` node of a Lightning logger."""
    callbacks: Any = None
    """Name → `_target_` node of a Lightning callback."""

    def __post_init__(self) -> None:
        _require(self.task in TASKS, "task", f"one of {', '.join(TASKS)}", self.task)
        _require(self.seed >= 0, "seed", ">= 0", self.seed)


def cross_check(root: RootConfig) -> None:
    """Rules that hold between nodes.

    Raises: UserError with the dotted key, what was got and what is allowed.
    """
    context, ppo = root.model.context_length, root.ppo
    _require(
        ppo.max_prompt_tokens + ppo.max_response_tokens <= context,
        "ppo.max_prompt_tokens + ppo.max_response_tokens",
        f"<= model.context_length={context}",
        ppo.max_prompt_tokens + ppo.max_response_tokens,
    )
    _require(
        ppo.max_prompt_tokens + root.evaluate.max_response_tokens <= context,
        "ppo.max_prompt_tokens + evaluate.max_response_tokens",
        f"<= model.context_length={context}",
        ppo.max_prompt_tokens + root.evaluate.max_response_tokens,
    )
    for stage in ("pretrain", "sft"):
        length = getattr(root, stage).max_length
        _require(
            length <= context, f"{stage}.max_length", f"<= model.context_length={context}", length
        )
    _require(
        ppo.max_prompt_tokens + root.reward.max_response_tokens <= context,
        "ppo.max_prompt_tokens + reward.max_response_tokens",
        f"<= model.context_length={context}",
        ppo.max_prompt_tokens + root.reward.max_response_tokens,
    )
    if root.reward.model is not None:  # reads what the policy of PPO and of the evaluation writes
        tokens = max(ppo.max_response_tokens, root.evaluate.max_response_tokens)
        longest = root.reward.model.context_length
        _require(
            ppo.max_prompt_tokens + tokens <= longest,
            "reward.model.context_length",
            f">= {ppo.max_prompt_tokens + tokens} (prompt and response)",
            longest,
        )
    _check_one_process(root.trainer or {})


def _check_one_process(trainer: dict[str, Any]) -> None:
    """Keys of the Trainer that Lightning would take and this version cannot follow."""
    precision = trainer.get("precision", "32-true")
    _require(
        precision in (32, "32", "32-true", "bf16-mixed"),
        "trainer.precision",
        "32-true or bf16-mixed (model.dtype says what the weights are)",
        precision,
    )
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    one = str(devices) == "1" or (
        isinstance(devices, list) and len(cast("list[Any]", devices)) == 1
    )
    allowed = "1, or a list of one device, where strategy=single"
    _require(one, "trainer.devices", allowed, trainer.get("devices"))
    _require(nodes == 1, "trainer.num_nodes", "1 where strategy=single", nodes)
