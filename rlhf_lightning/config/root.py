"""The whole tree, and the rules that hold between its nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlhf_lightning.config.checks import MISSING, require
from rlhf_lightning.config.data import DataConfig
from rlhf_lightning.config.evaluate import EvaluateConfig
from rlhf_lightning.config.generate import GenerateConfig, check_generate
from rlhf_lightning.config.mix import MixConfig
from rlhf_lightning.config.model import ModelConfig
from rlhf_lightning.config.ppo import PPOConfig
from rlhf_lightning.config.reward import RewardConfig
from rlhf_lightning.config.reward_source import RewardSourceConfig
from rlhf_lightning.config.sft import SFTConfig
from rlhf_lightning.config.slurm import PipelineSlurmConfig
from rlhf_lightning.config.strategy import (
    StrategyConfig,
    check_global_batches,
    check_processes,
    process_count,
)
from rlhf_lightning.errors import UserError

STAGES = ("pretrain", "sft", "reward", "ppo")
TASKS = (*STAGES, "evaluate", "pipeline", "generate", "data", "runs", "sweep_report")


@dataclass
class PipelineConfig:
    """The chain of stages."""

    rounds: int = 1
    """Collection → reward → PPO, repeated from the current policy. 1: once; [I] collected more than once."""
    launch: str = "local"
    """local: one stage after the other in this process; slurm: each stage is a job, which waits for its parents'."""
    only: str | None = None
    """One stage of the chain, by its name in the pipeline's directory: `round-1/ppo`; its parents must be there."""
    slurm: PipelineSlurmConfig = field(default_factory=PipelineSlurmConfig)
    """launch=slurm: what the jobs get. Group conf/slurm."""

    def __post_init__(self) -> None:
        require(self.rounds >= 1, "pipeline.rounds", ">= 1", self.rounds)
        launches = ("local", "slurm")
        require(self.launch in launches, "pipeline.launch", "local or slurm", self.launch)
        alone = self.only is None or self.launch == "local"
        require(alone, "pipeline.only", "null where pipeline.launch=slurm", self.only)


@dataclass
class RootConfig:
    """The whole tree."""

    task: str = "pipeline"
    """What to run: pretrain | sft | reward | ppo | evaluate | pipeline | generate | data | runs | sweep_report."""
    seed: int = 0
    """Seeds weights, data order and sampling of every stage."""
    outputs: str = "outputs"
    """Where runs are kept, relative to the working directory."""
    run_dir: str | None = None
    """This run (all of a pipeline's stages under it) goes there instead."""
    dry_run: bool = False
    """Only say for every stage: reused, continued or new."""
    input: str | None = None
    """task=generate: file of prompts, .jsonl or .txt, each also .gz."""
    output: str | None = None
    """task=generate: JSON Lines file that is written; null: the responses are printed."""
    prompt: str | None = None
    """task=generate: one prompt in place of `input`."""
    sweep: str | None = None
    """task=sweep_report: directory of a search with Optuna; the page goes into it."""
    model: ModelConfig = MISSING
    """Group conf/model; nano."""
    mix: MixConfig = MISSING
    """Group conf/mix; demo."""
    pretrain: SFTConfig = MISSING
    """Group conf/pretrain: language modelling on raw text; skipped where model.path is set."""
    sft: SFTConfig = MISSING
    """Group conf/sft."""
    reward: RewardConfig = MISSING
    """Group conf/reward."""
    reward_source: RewardSourceConfig = field(default_factory=RewardSourceConfig)
    """Group conf/reward_source; learned."""
    ppo: PPOConfig = MISSING
    """Group conf/ppo."""
    evaluate: EvaluateConfig = MISSING
    """Group conf/evaluate."""
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    """task=generate: how responses are drawn."""
    data: DataConfig = field(default_factory=DataConfig)
    """task=data: how much is read and shown."""
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    """task=pipeline: how often."""
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    """Group conf/strategy: how models are spread over processes; single."""
    trainer: Any = None
    """Keys of lightning.pytorch.Trainer: where and how, never how long."""
    logger: Any = None
    """Name → `_target_` node of a Lightning logger."""
    callbacks: Any = None
    """Name → `_target_` node of a Lightning callback."""

    def __post_init__(self) -> None:
        require(self.task in TASKS, "task", f"one of {', '.join(TASKS)}", self.task)
        require(self.seed >= 0, "seed", ">= 0", self.seed)


def cross_check(root: RootConfig) -> None:
    """Rules that hold between nodes.

    Raises: UserError with the dotted key, what was got and what is allowed.
    """
    stages = trained_stages(root)
    _check_lengths(root, stages)
    if "ppo" in stages:
        _check_shared_prompt(root)
        _check_zero(root)
    _check_reward_source(root)
    check_generate(root)
    _check_sweep_report(root)
    if root.task != "pipeline":
        given = root.pipeline
        require(given.launch == "local", "pipeline.launch", "local but in task=pipeline", "slurm")
        require(given.only is None, "pipeline.only", "null but in task=pipeline", given.only)
    check_processes(root.strategy, root.trainer or {})
    check_global_batches(process_count(root.trainer), _global_batches(root))


def _check_lengths(root: RootConfig, stages: frozenset[str]) -> None:
    """What the stages of this command read and write fits into the context."""
    context, prompt = root.model.context_length, root.ppo.max_prompt_tokens
    writing = [stage for stage in ("ppo", "reward") if stage in stages]
    if root.task in ("evaluate", "pipeline"):
        writing.append("evaluate")
    for stage in writing:
        key = f"ppo.max_prompt_tokens + {stage}.max_response_tokens"
        tokens = prompt + getattr(root, stage).max_response_tokens
        require(tokens <= context, key, f"<= model.context_length={context}", tokens)
    for stage in stages.intersection(("pretrain", "sft")):
        length = getattr(root, stage).max_length
        require(
            length <= context, f"{stage}.max_length", f"<= model.context_length={context}", length
        )
    if writing and root.reward.model is not None:  # reads what is written there
        tokens = prompt + max(root.ppo.max_response_tokens, root.evaluate.max_response_tokens)
        longest = root.reward.model.context_length
        rule = f">= {tokens} (prompt and response)"
        require(tokens <= longest, "reward.model.context_length", rule, longest)


def _check_shared_prompt(root: RootConfig) -> None:
    """What computes a prompt once for its responses holds all activations, and all gradients, until it is done."""
    key, shares = "ppo.share_prompt", root.ppo.share_prompt
    rule = "false where model.gradient_checkpointing is true"
    require(not (shares and root.model.gradient_checkpointing), key, rule, shares)
    spreads = root.strategy.name not in ("single", "ddp")
    rule = f"false where strategy={root.strategy.name} and ppo.lora is null (all gradients would be whole at once)"
    require(not (shares and spreads and root.ppo.lora is None), key, rule, shares)


def _check_sweep_report(root: RootConfig) -> None:
    """A sweep is named where one is read, and only there."""
    if root.task != "sweep_report":
        require(root.sweep is None, "sweep", f"null where task is {root.task}", root.sweep)
        return
    allowed = "a sweep's directory where task is sweep_report (outputs/sweeps/NAME-HASH)"
    require(bool(root.sweep), "sweep", allowed, root.sweep)
    rule = "null where task is sweep_report (the page goes into the sweep)"
    require(root.run_dir is None, "run_dir", rule, root.run_dir)


def _check_reward_source(root: RootConfig) -> None:
    """A reward model is named where the score has one to name."""
    members = root.reward_source.members
    for key, given in (
        ("ppo.init.reward", root.ppo.init.reward),
        ("evaluate.reward", root.evaluate.reward),
    ):
        if given is not None and members != 1:
            what = "an ensemble of them" if members else "no learned part"
            raise UserError(f"{key} must be null where reward_source has {what}, got {given!r}")
    learned, reader = root.reward_source.learned, root.reward.model or root.model
    if learned is not None and learned.end_with_eos:
        said = max(root.ppo.max_response_tokens, root.evaluate.max_response_tokens)
        tokens = root.ppo.max_prompt_tokens + said + 1
        rule = f"false where the reward model's context_length < {tokens} (prompt, response, EOS)"
        (name,) = [n for n, part in root.reward_source.parts.items() if part is learned]
        key = f"reward_source.parts.{name}.end_with_eos"
        require(tokens <= reader.context_length, key, rule, learned.end_with_eos)
    alone = root.task == "reward" or root.reward_source.member == 0
    require(alone, "reward_source.member", "0 but in task=reward", root.reward_source.member)


def _check_zero(root: RootConfig) -> None:
    """DeepSpeed gives every weight a gradient: of 0 where there is none, by which optimizers count and decay.

    What copies weights of the policy as they are has no whole ones to copy under ZeRO-3.
    """
    if root.strategy.name.startswith("deepspeed"):
        rule = f"0 where strategy={root.strategy.name} (the policy would decay; fsdp2 has it)"
        warmup = root.ppo.critic_warmup_iterations
        require(warmup == 0, "ppo.critic_warmup_iterations", rule, warmup)
    if root.strategy.name == "deepspeed_zero3":
        rule = "null where strategy=deepspeed_zero3 (fsdp2 spreads weights too, and has it)"
        ppo = root.ppo
        require(ppo.ema_decay is None, "ppo.ema_decay", rule, ppo.ema_decay)
        refresh = ppo.reference_refresh_every
        require(refresh is None, "ppo.reference_refresh_every", rule, refresh)


def trained_stages(root: RootConfig) -> frozenset[str]:
    """The stages that the command may train: of the others' settings nothing is asked."""
    if root.task != "pipeline":
        return frozenset({root.task}).intersection(STAGES)
    learned = root.reward_source.members > 0 and root.ppo.init.reward is None
    starts = [root.ppo.init.policy, *([root.reward.init.policy] if learned else [])]
    starts += [
        root.evaluate.models[name] for name in ("base", "sft") if name in root.evaluate.models
    ]
    sizes = (root.model, root.reward.model or root.model)
    weights = root.sft.init.policy is not None or all(model.path is not None for model in sizes)
    needed = {"sft": None in starts, "reward": learned, "ppo": True}
    needed["pretrain"] = needed["sft"] and not weights
    return frozenset(stage for stage in STAGES if needed[stage])


def _global_batches(root: RootConfig) -> dict[str, int]:
    """Key → size of what is shared among processes."""
    stages = trained_stages(root)
    sizes = {
        f"{stage}.global_batch_size": getattr(root, stage).global_batch_size
        for stage in ("pretrain", "sft", "reward")
        if stage in stages
    }
    if "ppo" in stages:
        sizes["ppo.episodes_per_iteration"] = root.ppo.episodes_per_iteration
        sizes["ppo.minibatch_size"] = root.ppo.minibatch_size
    return sizes
