"""Step 1: supervised fine-tuning on demonstrations, and pretraining, which is the same loss on raw text.

Cross-entropy on the tokens of `loss_mask`, averaged over all target tokens of the global batch.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from rlhf_lightning.batches import SFTBatch
from rlhf_lightning.callbacks.log import log_metrics
from rlhf_lightning.config import SFTConfig
from rlhf_lightning.functional.losses import causal_lm_loss
from rlhf_lightning.models.dropout import set_dropout
from rlhf_lightning.models.forward import packed_logits
from rlhf_lightning.models.loading import numbers_of
from rlhf_lightning.processes import all_sum, piece_size, shares
from rlhf_lightning.stages.updates import (
    LearningRate,
    OptimizerFactory,
    gradients_of,
    leave_out_frozen,
    require_finite,
    require_whole,
    step_optimizer,
    trained,
)

log = logging.getLogger("rlhf_lightning")


class SFTModule(LightningModule):
    """One `training_step` is one optimizer step on one global batch."""

    def __init__(
        self,
        hp: SFTConfig,
        model: PreTrainedModel,
        optimizer: OptimizerFactory,
        *,
        total_steps: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # a step has its own loop of micro-batches
        self.strict_loading = (
            False  # a frozen backbone is not in the checkpoint; require_whole checks
        )
        self.hp, self.model, self.make_optimizer = hp, model, optimizer
        self.lr = LearningRate(hp.schedule, total_steps)
        self.tokens_seen = 0
        self.val_loss = float("nan")
        self._val_sums: list[tuple[Tensor, int]] = []

    def configure_optimizers(self) -> Optimizer:
        return self.make_optimizer(trained(self.model))

    @property
    def trained_parameters(self) -> int:
        """Numbers that the optimizer changes."""
        return sum(numbers_of(p) for p in trained(self.model))

    def on_train_start(self) -> None:
        if set_dropout(self.model, self.hp.dropout) == 0 and self.hp.dropout > 0:
            log.warning(
                "%s.dropout is %g, but the architecture has no dropout: it stays without",
                self.hp.stage,
                self.hp.dropout,
            )
        self.model.train()

    def training_step(self, batch: SFTBatch, batch_idx: int) -> None:
        targets = int(batch.loss_mask[:, 1:].sum())
        if not targets:  # all its examples were too long: no step
            return
        start, where = time.perf_counter(), f"{self.hp.stage}: step {batch_idx}"
        optimizer = self.optimizers()
        lr = self.lr.apply(optimizer, batch_idx)  # type: ignore[arg-type]
        loss_sum = torch.zeros((), device=batch.ids.device)
        for micro, counts in shares(self._micro_batches(batch)):
            loss = self.loss(micro, normalizer=targets)
            require_finite(loss, where=where)
            self.manual_backward(loss if counts else 0 * loss)
            if counts:
                loss_sum += loss.detach()
        loss_sum = all_sum(loss_sum)
        norm = step_optimizer(
            optimizer,
            trained(self.model),
            grad_clip=self.hp.grad_clip,
            where=where,
            gradients=gradients_of(self),
        )
        tokens = int(batch.mask.sum())
        self.tokens_seen += tokens
        metrics = {"loss": loss_sum.item(), "grad_norm": norm, "lr": lr}
        speed = {"time/tokens_per_s": tokens / (time.perf_counter() - start)}
        prefix = f"{self.hp.stage}/train"
        log_metrics(
            self, {f"{prefix}/{k}": v for k, v in metrics.items()} | speed, step=batch_idx + 1
        )

    def loss(self, batch: SFTBatch, *, normalizer: float) -> Tensor:
        """Summed target cross-entropy / normalizer, a scalar."""
        logits = packed_logits(self.model, batch)
        return causal_lm_loss(logits, batch.ids, batch.loss_mask, normalizer=normalizer)

    def validation_step(self, batch: SFTBatch, batch_idx: int) -> None:
        for micro, counts in shares(self._micro_batches(batch)):
            targets = int(micro.loss_mask[:, 1:].sum())
            loss = self.loss(micro, normalizer=1.0)
            if counts:
                self._val_sums.append((loss, targets))

    def _micro_batches(self, batch: SFTBatch) -> list[SFTBatch]:
        size = piece_size(len(batch.ids), self.hp.micro_batch_size)
        return list(batch.micro_batches(size))

    def on_validation_epoch_end(self) -> None:
        zero = torch.zeros((), device=self.device)
        tokens = int(all_sum(torch.tensor(sum(n for _, n in self._val_sums))))
        loss = all_sum(sum((s for s, _ in self._val_sums), zero))
        self.val_loss = float(loss) / max(tokens, 1)
        self._val_sums.clear()
        log_metrics(
            self,
            {f"{self.hp.stage}/val/loss": self.val_loss},
            step=self.trainer.fit_loop.total_batch_idx + 1,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["progress"] = {"tokens_seen": self.tokens_seen, "val_loss": self.val_loss}
        leave_out_frozen(checkpoint, self.model, "model")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        require_whole(checkpoint, self)
        progress = checkpoint["progress"]
        self.tokens_seen, self.val_loss = progress["tokens_seen"], progress["val_loss"]
