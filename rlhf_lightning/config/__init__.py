"""Every setting of this project: its type, meaning, unit, and where its default comes from.

Foreign classes (optimizers, Trainer, loggers, callbacks) stay plain `_target_` nodes and are typed `Any` here;
`rlhf_lightning.compose` checks their keys against the target's signature.
Sources in brackets are those of docs: [I] InstructGPT, [S] Learning to summarize, [Z] Ziegler et al.,
[N] N implementation details (summarization). "nano" marks a default chosen by measurement for the built-in world,
"size" one that only trades memory for speed, "habit" one that is the field's custom and was not measured here.

A default here is what a key has where no preset sets it. The presets in conf/ override many of them, and the
command's own defaults are those presets (sft=default, ppo=default, ...): `rlhf --cfg job` prints what holds.

One file a group of settings: `model`, `mix`, `lora`, `sft`, `reward`, `reward_source`, `ppo`, `evaluate`, `generate`,
`data`, `strategy`, `training`, `slurm`; `root` holds them together.
"""

from rlhf_lightning.config.checks import MISSING
from rlhf_lightning.config.data import DataConfig
from rlhf_lightning.config.evaluate import EvaluateConfig
from rlhf_lightning.config.generate import GenerateConfig, GenerateInitConfig
from rlhf_lightning.config.lora import LoRAConfig
from rlhf_lightning.config.mix import MixConfig, SourceConfig
from rlhf_lightning.config.model import ModelConfig
from rlhf_lightning.config.ppo import AdaptiveKLConfig, PPOConfig, PTXConfig
from rlhf_lightning.config.reward import RewardConfig
from rlhf_lightning.config.reward_source import RewardPartConfig, RewardSourceConfig
from rlhf_lightning.config.root import (
    STAGES,
    TASKS,
    PipelineConfig,
    RootConfig,
    cross_check,
)
from rlhf_lightning.config.sft import SFTConfig
from rlhf_lightning.config.slurm import PipelineSlurmConfig, SlurmConfig
from rlhf_lightning.config.strategy import StrategyConfig, process_count
from rlhf_lightning.config.training import InitConfig, PPOInitConfig, ScheduleConfig

__all__ = [
    "MISSING",
    "DataConfig",
    "EvaluateConfig",
    "GenerateConfig",
    "GenerateInitConfig",
    "LoRAConfig",
    "MixConfig",
    "SourceConfig",
    "ModelConfig",
    "AdaptiveKLConfig",
    "PPOConfig",
    "PTXConfig",
    "RewardConfig",
    "RewardPartConfig",
    "RewardSourceConfig",
    "STAGES",
    "TASKS",
    "PipelineConfig",
    "RootConfig",
    "StrategyConfig",
    "cross_check",
    "process_count",
    "SFTConfig",
    "PipelineSlurmConfig",
    "SlurmConfig",
    "InitConfig",
    "PPOInitConfig",
    "ScheduleConfig",
]
