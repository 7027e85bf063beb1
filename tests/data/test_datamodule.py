"""Lightning saves and restores the place in the data, at any step, with validation in between."""

import lightning.pytorch as pl
import pytest
import torch

from rlhf_lightning.batches import PromptBatch
from rlhf_lightning.data.datamodule import StageData
from rlhf_lightning.data.loader import BatchLoader, ResumableLoader

TOTAL = 6


def make_batch(i):
    ids = torch.full((2, 3), i)
    return PromptBatch(ids=ids, mask=ids >= 0, records=[{"i": i}] * 2)


class Module(pl.LightningModule):
    """Manual optimization, two optimizer steps for each batch, as in PPO."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen, self.validated = [], []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        self.seen.append((batch_idx, int(batch.ids[0, 0])))
        for _ in range(2):
            self.optimizers().zero_grad()
            self.manual_backward((self.weight * (batch.ids.float().mean() + 1)).sum())
            self.optimizers().step()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.validated.append((len(self.seen), int(batch.ids[0, 0])))


class SaveAfter(pl.Callback):
    def __init__(self, batch, path):
        self.batch, self.path = batch, path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == self.batch:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


def fit(module, *, callbacks=(), ckpt_path=None, prefetch=0, val_check_interval=2):
    data = StageData(
        ResumableLoader(make_batch, TOTAL, prefetch=prefetch), BatchLoader(make_batch, 3)
    )
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        limit_val_batches=2,
        val_check_interval=val_check_interval,
        callbacks=list(callbacks),
    )
    trainer.fit(
        module, datamodule=data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None
    )
    return trainer, data


@pytest.mark.parametrize("prefetch", [0, 1])
@pytest.mark.parametrize("last", range(TOTAL))
@pytest.mark.filterwarnings("ignore")
def test_a_run_stopped_after_any_batch_goes_on_with_the_next_one(tmp_path, last, prefetch):
    straight = Module()
    fit(straight)
    assert straight.seen == [(i, i) for i in range(TOTAL)]

    stopped, path = Module(), tmp_path / "a.ckpt"
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(stopped, callbacks=[SaveAfter(last, path)], prefetch=prefetch)
    resumed = Module()
    _, data = fit(resumed, ckpt_path=path, prefetch=prefetch)
    assert stopped.seen + resumed.seen == straight.seen
    assert torch.equal(resumed.weight, straight.weight)
    assert data.train.position == TOTAL
    # Lightning takes a validation that is due at the very step of the checkpoint as done; every later one runs.
    due = [(step, i) for step in (2, 4, 6) if step > last + 1 for i in range(2)]
    assert [(last + 1 + step, i) for step, i in resumed.validated] == due
