"""A stage's loaders as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import LightningDataModule

from rlhf_lightning.data.loader import BatchLoader


class StageData(LightningDataModule):
    """Training batches (a `ResumableLoader`) and validation batches (plain `BatchLoader`s).

    Validation must not be resumable: Lightning leaves a validation loader half way in its sanity check.
    """

    def __init__(
        self, train: BatchLoader, validation: BatchLoader | Sequence[BatchLoader] | None = None
    ) -> None:
        super().__init__()
        self.train = train
        self.validation = (
            [validation] if isinstance(validation, BatchLoader) else list(validation or ())
        )

    def train_dataloader(self) -> BatchLoader:
        return self.train

    def val_dataloader(self) -> list[BatchLoader]:
        return self.validation
