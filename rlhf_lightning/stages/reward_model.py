"""Step 2: the reward model, trained on all pairs of a prompt at once.

loss = −(1/|P|) Σ_{(w,l)∈P} log σ(s_w − s_l), averaged over prompts.
Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 1 (K = 4..9; K = 2 is Bradley-Terry).
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from rlhf_lightning.batches import ComparisonBatch
from rlhf_lightning.callbacks.log import log_metrics
from rlhf_lightning.config import RewardConfig
from rlhf_lightning.functional.losses import kwise_loss
from rlhf_lightning.models.loading import numbers_of
from rlhf_lightning.models.shared_prompt import comparison_scores
from rlhf_lightning.processes import all_sum, gather, piece_size, shares
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


class RewardModule(LightningModule):
    """One `training_step` is one optimizer step on the comparisons of one global batch of prompts."""

    def __init__(
        self,
        hp: RewardConfig,
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
        self.val_accuracy = float("nan")
        self._val: list[tuple[float, int, float, int]] = []

    def configure_optimizers(self) -> Optimizer:
        return self.make_optimizer(trained(self.model))

    @property
    def trained_parameters(self) -> int:
        """Numbers that the optimizer changes."""
        return sum(numbers_of(p) for p in trained(self.model))

    def on_train_start(self) -> None:
        self.model.train()

    def training_step(self, batch: ComparisonBatch, batch_idx: int) -> None:
        if not batch.prompts:  # all its comparisons were too long, or ties: no step
            return
        start, where = time.perf_counter(), f"reward: step {batch_idx}"
        optimizer = self.optimizers()
        lr = self.lr.apply(optimizer, batch_idx)  # type: ignore[arg-type]
        loss_sum = torch.zeros((), device=batch.ids.device)
        right = torch.zeros((), device=batch.ids.device)
        for micro, counts in shares(self._micro_batches(batch)):
            scores = self.scores(micro)
            loss = self.loss(scores, micro, prompts=batch.prompts)
            require_finite(loss, where=where)
            self.manual_backward(loss if counts else 0 * loss)
            if counts:
                loss_sum += loss.detach()
                right += _right(scores.detach(), micro)
        loss_sum, right = all_sum(loss_sum), all_sum(right)
        norm = step_optimizer(
            optimizer,
            trained(self.model),
            grad_clip=self.hp.grad_clip,
            where=where,
            gradients=gradients_of(self),
        )
        metrics = {
            "loss": loss_sum.item(),
            "accuracy": right.item() / len(batch.pairs),
            "grad_norm": norm,
            "lr": lr,
        }
        speed = {"time/tokens_per_s": int(batch.mask.sum()) / (time.perf_counter() - start)}
        log_metrics(
            self, {f"reward/train/{k}": v for k, v in metrics.items()} | speed, step=batch_idx + 1
        )

    def scores(self, batch: ComparisonBatch) -> Tensor:
        """The score of each completion, (C,) fp32."""
        return comparison_scores(self.model, batch, share_prompt=self.hp.share_prompt)

    def loss(self, scores: Tensor, batch: ComparisonBatch, *, prompts: int) -> Tensor:
        """The K-wise loss of scores (C,), summed over the batch's prompts / `prompts`."""
        return kwise_loss(
            scores,
            batch.pairs,
            batch.weights,
            batch.margins,
            prompts=prompts,
            margin=self.hp.margin,
            centering=self.hp.centering,
            label_smoothing=self.hp.label_smoothing,
        )

    def validation_step(self, batch: ComparisonBatch, batch_idx: int) -> None:
        for micro, counts in shares(self._micro_batches(batch)):
            scores = self.scores(micro)
            loss = self.loss(scores, micro, prompts=1)
            if counts:
                self._val.append(
                    (float(_right(scores, micro)), len(micro.pairs), float(loss), micro.prompts)
                )

    def _micro_batches(self, batch: ComparisonBatch) -> list[ComparisonBatch]:
        size = piece_size(len(batch.records), self.hp.micro_batch_size)
        return list(batch.micro_batches(size))

    def on_validation_epoch_end(self) -> None:
        seen = [row for part in gather(self._val) for row in part]
        right, pairs, loss, prompts = (sum(column) for column in zip(*seen, strict=True))
        self._val.clear()
        # NaN, not the worst of all models, where labelers decided nothing
        self.val_accuracy = right / pairs if pairs else math.nan
        metrics = {
            "reward/val/pairwise_accuracy": self.val_accuracy,
            "reward/val/loss": loss / prompts if prompts else math.nan,
        }
        log_metrics(self, metrics, step=self.trainer.fit_loop.total_batch_idx + 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["progress"] = {"val_accuracy": self.val_accuracy}
        leave_out_frozen(checkpoint, self.model, "model")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        require_whole(checkpoint, self)
        self.val_accuracy = checkpoint["progress"]["val_accuracy"]


def _right(scores: Tensor, batch: ComparisonBatch) -> Tensor:
    """Pairs that the scores order as the labelers did; equal scores count ½: a constant model has 0.5."""
    winner, loser = scores[batch.pairs[:, 0]], scores[batch.pairs[:, 1]]
    return (winner > loser).sum() + 0.5 * (winner == loser).sum()
