"""The three stages at toy size, under any strategy: trained straight, and trained with a stop in the middle."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from rlhf_lightning.callbacks.checkpointing import find_checkpoint, save_checkpoint
from rlhf_lightning.config import PTXConfig, RewardConfig, ScheduleConfig, SFTConfig, StrategyConfig
from rlhf_lightning.data.collate import collate_comparisons, pack
from rlhf_lightning.data.datamodule import StageData
from rlhf_lightning.data.loader import BatchLoader, ResumableLoader
from rlhf_lightning.processes import is_sharded
from rlhf_lightning.stages.reward_model import RewardModule
from rlhf_lightning.stages.sft import SFTModule
from rlhf_lightning.stages.updates import trained
from rlhf_lightning.strategies.build import trainer_options
from tests.stages import test_ppo as ppo_of
from tests.stages.test_reward_model import comparisons
from tests.stages.test_sft import documents
from tests.tiny import PAD, tiny_policy, tiny_scorer

STEPS = {"sft": 11, "reward": 11, "ppo": 6}
"""Training batches; an iteration of PPO is two optimizer steps."""
LOST = 2
"""Batch of SFT and of the reward model that has no examples."""
CONSTANT = ScheduleConfig(name="constant", final_fraction=1.0)
ADAM = partial(torch.optim.Adam, lr=1e-3, eps=1e-5)


def module(stage: str, **changes: Any) -> LightningModule:
    if stage == "sft":
        hp = SFTConfig(global_batch_size=8, micro_batch_size=2, max_length=16, schedule=CONSTANT)
        return SFTModule(hp, tiny_policy(), ADAM, total_steps=STEPS[stage])
    if stage == "reward":
        reward = RewardConfig(global_batch_size=8, micro_batch_size=3, schedule=CONSTANT)
        return RewardModule(reward, tiny_scorer(), ADAM, total_steps=STEPS[stage])
    from dataclasses import replace

    settings = {"iterations": STEPS["ppo"], "minibatch_size": 8, "micro_batch_size": 3}
    settings |= {"rollout_batch_size": 3, "normalize_scores": True, "ratio_tolerance": 1e-3}
    settings |= {"ptx": PTXConfig(coef=0.5)}
    # rounding moves a token whose uniform number lies within 1e-6 of its probability's edge: this seed has none
    hp = replace(ppo_of.HP, **(settings | changes))
    without = {"value": None} if hp.advantage == "rloo" else {}
    return ppo_of.module(hp, optimizer=ADAM, seed=1, **without)


def batch(stage: str, number: int, *, texts: int = 0) -> Any:
    if number == LOST and stage != "ppo":  # all its examples were too long
        return pack([], 16, PAD) if stage == "sft" else collate_comparisons([], PAD)
    if stage == "sft":  # five documents and odd rows: the processes do not get equally many
        return pack(documents([9, 7, 5, 4, 3, 3, 8], seed=number), 16, PAD)
    if stage == "reward":
        return comparisons()
    return ppo_of.batches(number + 1, texts=texts)[number]


@dataclass
class Kept(Callback):
    """What one training run left."""

    folder: Path | None = None
    save_after: int | None = None
    metrics: list[dict[str, float]] = field(default_factory=list)
    first: list[torch.Tensor] = field(default_factory=list)
    last: list[torch.Tensor] = field(default_factory=list)
    average: list[torch.Tensor] = field(default_factory=list)
    largest_average: int = 0
    """Numbers of the average that one process held at any time."""
    frozen_sharded: bool = False

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._look_at_average(pl_module)

    def _look_at_average(self, pl_module: Any) -> None:
        from rlhf_lightning.strategies.sharding import local

        numbers = [local(p) for p in getattr(getattr(pl_module, "ema", None), "numbers", ())]
        self.largest_average = max(self.largest_average, sum(n.numel() for n in numbers))

    def on_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.metrics.append(
            {name: value for name, value in metrics.items() if not name.startswith("time/")}
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self.first = whole(pl_module)
        if batch_idx + 1 == self.save_after:
            assert self.folder is not None
            save_checkpoint(trainer, self.folder)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.last = whole(pl_module)
        self._look_at_average(pl_module)
        if getattr(pl_module, "ema", None) is not None:
            self.average = whole_of(pl_module.ema.numbers)
        reference = getattr(pl_module, "_frozen", (None,))[0]
        self.frozen_sharded = reference is not None and is_sharded(reference)


def whole(pl_module: Any) -> list[torch.Tensor]:
    """All that is trained, put together again."""
    return whole_of(trained(pl_module))


def whole_of(parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Weights, put together again."""
    from rlhf_lightning.strategies.sharding import gathered

    return [gathered(p, keep=True).clone() for p in parameters]


def train(
    stage: str,
    strategy: StrategyConfig,
    *,
    folder: Path,
    save_after: int | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """One training run; from the checkpoint in `folder` if there is one."""
    kept = Kept(folder, save_after)
    trained_module = module(stage, **changes)
    devices = 1 if strategy.name == "single" else 2
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[kept],
        **trainer_options(strategy, grad_clip=1.0),
    )
    texts = trained_module.hp.minibatches if stage == "ppo" else 0
    train_loader = ResumableLoader(lambda i: batch(stage, i, texts=texts), STEPS[stage])
    prompts = (lambda i: batch(stage, i).prompts) if stage == "ppo" else (lambda i: batch(stage, i))
    validation = BatchLoader(prompts, 1)
    checkpoint = find_checkpoint(folder)
    if checkpoint is None:
        trainer.validate(trained_module, validation, verbose=False)
    trainer.fit(
        trained_module,
        StageData(train_loader, validation),
        ckpt_path=checkpoint,
        weights_only=True if checkpoint else None,
    )
    trainer.validate(trained_module, validation, verbose=False)
    return {
        "metrics": kept.metrics,
        "first": kept.first,
        "last": kept.last,
        "average": kept.average,
        "largest_average": kept.largest_average,
        "frozen_sharded": kept.frozen_sharded,
    }


def straight_and_resumed(
    stage: str, strategy: StrategyConfig, folder: Path, **changes: Any
) -> dict[str, Any]:
    """A run from beginning to end, which leaves a checkpoint half way, and one that goes on from there."""
    work = partial(train, stage, strategy, folder=folder / stage, **changes)
    return {"straight": work(save_after=STEPS[stage] // 2), "resumed": work()}
