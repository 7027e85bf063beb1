"""Running a module for a few steps, and looking at its gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader


class _Keep(Callback):
    """A callback that keeps every metric."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.seen.append(metrics)


def _trainer() -> tuple[Trainer, _Keep]:
    keep = _Keep()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[keep],
    )
    return trainer, keep


def fit(module: LightningModule, batches: Sequence[Any]) -> list[dict[str, float]]:
    """One training step for each batch; returns what was logged."""
    trainer, keep = _trainer()
    trainer.fit(module, train_dataloaders=DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return keep.seen


def validate(module: LightningModule, batches: Sequence[Any]) -> dict[str, float]:
    """One validation of all batches; returns what was logged."""
    trainer, keep = _trainer()
    trainer.validate(module, DataLoader(batches, batch_size=None), verbose=False)  # type: ignore[arg-type]
    (logged,) = keep.seen
    return logged


def gradient(module: nn.Module, losses: Iterable[Tensor]) -> Tensor:
    """The gradient that is left when each loss has gone backward, flat."""
    module.zero_grad()
    for loss in losses:
        loss.backward()
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
