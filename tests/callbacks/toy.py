"""A tiny module with every kind of randomness, for tests of what happens beside training."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from rlhf_lightning.callbacks.log import log_metrics


class Rows:
    """A stateful loader: `batches` random rows an epoch from a generator of its own."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.generator = torch.Generator().manual_seed(7)
        self.done = 0
        self._resumed = False

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Tensor]:
        # A checkpoint at an epoch's last batch resumes in the next epoch.
        if not self._resumed or self.done >= self.batches:
            self.done = 0
        self._resumed = False
        while self.done < self.batches:
            row = torch.randn(3, generator=self.generator)
            self.done += 1
            yield row

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]
        self.generator.set_state(state["generator"])
        self._resumed = True


class Toy(pl.LightningModule):
    """Two optimizer steps a batch; dropout, numpy and python noise; validation draws too."""

    def __init__(
        self,
        *,
        stop_at: int | None = None,
        die_at: int | None = None,
        stop_in_validation: int | None = None,
        signum: int = signal.SIGTERM,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(3, 1)
        with torch.no_grad():
            self.layer.weight.fill_(0.5)
            self.layer.bias.zero_()
        self.iteration = 0
        self.validated: list[int] = []
        self.noise: list[float] = []
        self.stop_at, self.die_at = stop_at, die_at
        self.signum, self.stop_in_validation = signum, stop_in_validation
        self.requested: int | None = None
        self.validation_samples: list[dict[str, Any]] | None = None

    def on_signal(self, signum: int, frame: object) -> None:
        self.requested = signum

    @property
    def log_step(self) -> int:
        return self.iteration

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.iteration += 1
        for _ in range(2):
            noise = random.random() + float(np.random.rand()) + float(torch.rand(()))
            loss = (torch.nn.functional.dropout(self.layer(batch)) - noise).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.noise.append(noise)
        log_metrics(self, {"train/loss": loss.item()}, self.iteration)
        if self.iteration == self.stop_at:
            os.kill(os.getpid(), self.signum)
        if self.iteration == self.die_at:
            raise RuntimeError("killed")

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        torch.rand(())
        if self.trainer.sanity_checking or batch_idx:
            return
        if self.iteration == self.stop_in_validation:
            os.kill(os.getpid(), self.signum)
        self.validated.append(self.iteration)
        log_metrics(self, {"val/score": float(torch.rand(()))}, self.iteration)
        self.validation_samples = [sample(self.iteration)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["iteration"] = self.iteration

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.iteration = checkpoint["iteration"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)


def sample(step: int) -> dict[str, Any]:
    return {
        "prompt": f"user: a|b\n<b>{step}</b>",
        "response": "yes it is",
        "score": 1.25,
        "gold": 0.5,
        "kl_k1": 0.75,
        "tokens": ["yes", " it", " is"],
        "token_kl_k1": [0.5, 0.25, 0.0],
        "token_value": [0.1, 0.2, 0.3],
        "token_advantage": [-1.0, 0.0, 1.0],
    }


def trainer(
    folder: Path, callbacks: list[pl.Callback], loggers: Any = False, **kwargs: Any
) -> pl.Trainer:
    settings: dict[str, Any] = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "max_epochs": 2,
        "val_check_interval": 3,
        "check_val_every_n_epoch": None,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "callbacks": callbacks,
        "logger": loggers,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(**settings | kwargs)
