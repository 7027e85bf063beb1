"""The one place where a Trainer is made: loggers, callbacks, checkpoints, and going on after a stop."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer

from rlhf_lightning.callbacks.checkpointing import Checkpointing, find_checkpoint
from rlhf_lightning.callbacks.log import drop_after
from rlhf_lightning.callbacks.metrics_csv import MetricsCSV
from rlhf_lightning.callbacks.progress import StageProgress
from rlhf_lightning.callbacks.pruning import pruning
from rlhf_lightning.callbacks.samples import SampleTables
from rlhf_lightning.data.datamodule import StageData
from rlhf_lightning.errors import UserError
from rlhf_lightning.processes import world_size
from rlhf_lightning.strategies.build import trainer_options
from rlhf_lightning.tasks.job import Job, device_for

QUIET = (
    r".*does not have many workers.*",  # batches are made by number, ahead of time where it pays
    r".*module\(s\) in eval mode at the start of training.*",  # frozen models are meant to be
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # Lightning 2.6.6 with torch 2.13
    r".*srun.*",  # SLURM is installed but this is no job
    r".*The number of training batches.*",
)
for pattern in QUIET:
    warnings.filterwarnings("ignore", message=pattern)
logging.getLogger("lightning.pytorch").setLevel(
    logging.WARNING
)  # the stage says what matters itself


HEAT_STRIPS = 2
"""Prompts whose tokens are drawn at each validation; a figure takes 0.2 s."""


def fit(
    job: Job,
    module: LightningModule,
    data: StageData,
    *,
    validate_every: int,
    checkpoint_every: int,
    validate_first: bool = False,
) -> Trainer:
    """Train to the end of `data`, from the run's last checkpoint if it has one.

    Raises: RunFailed where a number is not finite, Interrupted where a signal asked to stop.
    """
    run, checkpoint = job.run, _checkpoint(job)
    _say_what_rounding_takes(job, module)
    trainer = _trainer(
        **{**(job.root.trainer or {}), "accelerator": device_of(job).type},
        **trainer_options(job.root.strategy, grad_clip=getattr(job.root, job.task).grad_clip),
        max_epochs=1,
        logger=[MetricsCSV(job.run.metrics_csv), *job.loggers],
        callbacks=_callbacks(job, checkpoint_every),
        val_check_interval=min(validate_every, max(len(data.train), 1)),
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=run.path,
    )
    if checkpoint is not None:
        job.say(f"goes on from {checkpoint}")
    else:
        if run.continued:  # killed before its first checkpoint: all it logged is made again
            drop_after(trainer, -1)
        if validate_first:
            trainer.validate(module, data, verbose=False)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    for name, count in sorted(data.train.counts.items()):
        if count and any(word in name for word in ("too_long", "dropped", "cut", "not_learnt")):
            job.say(f"{count} {name.replace('_', ' ')}")
    return trainer


def _trainer(**options: Any) -> Trainer:
    try:
        return Trainer(**options)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UserError(
            f"trainer must be what Lightning takes, got: {' '.join(str(error).split())}"
        ) from error


def _say_what_rounding_takes(job: Job, module: LightningModule) -> None:
    rounded = any(p.requires_grad and p.dtype == torch.bfloat16 for p in module.parameters())
    if rounded and not job.root.strategy.name.startswith("deepspeed"):  # which has fp32 copies
        job.say(
            "weights in bfloat16 are trained: steps smaller than 1/512 of a weight are rounded away"
            " (model.dtype=float32 trainer.precision=bf16-mixed keeps them)"
        )


def _checkpoint(job: Job) -> Path | None:
    """What to go on from.

    Raises: UserError if it was written under a strategy that leaves other files.
    """
    found = find_checkpoint(job.run.checkpoints)
    if found is not None:
        require_readable(found, job.root.strategy.name)
    return found


def _callbacks(job: Job, checkpoint_every: int) -> list[Any]:
    bar = (job.root.trainer or {}).get("enable_progress_bar", True)
    return [
        *([StageProgress(job.task)] if bar else []),
        SampleTables(job.run.path / "samples.jsonl", figures=HEAT_STRIPS),
        *job.callbacks,
        *pruning(job.run, job.round),
        # last, so that the states of the others are those after the step; a process whose run another one took over
        # ends before it writes
        Checkpointing(job.run.checkpoints, checkpoint_every, job.stop, job.run.update),
    ]


def require_readable(checkpoint: Path, strategy: str) -> None:
    """Raises: UserError if the processes of another strategy, or another number of them, wrote the checkpoint."""
    names = [file.stem for file in checkpoint.glob("*.ckpt")] if checkpoint.is_dir() else []
    written = names[0].split("-rank-")[0] if names else "single or ddp"
    fits = written == strategy if names else strategy in ("single", "ddp")
    if not fits or (names and len(names) != world_size()):
        count = f" in {len(names)} processes" if names else ""
        raise UserError(
            f"strategy must be that of the run's checkpoint, {written}{count}, got {strategy} in"
            f" {world_size()}; remove {str(checkpoint)!r} to begin again"
        )


def device_of(job: Job) -> torch.device:
    """Where a task without a Trainer computes: the Trainer's device."""
    return device_for(job.root.trainer)
