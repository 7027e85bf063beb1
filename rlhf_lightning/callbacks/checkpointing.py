"""Checkpoints that a kill at any moment leaves whole, and that continue a run to the bit."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import time
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn

from rlhf_lightning.callbacks.log import drop_after
from rlhf_lightning.callbacks.random_state import random_state, set_random_state
from rlhf_lightning.errors import Interrupted, RunFailed
from rlhf_lightning.processes import gather, largest, rank, wait_for_all, world_size
from rlhf_lightning.runs.files import sync

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
FILES = "files.json"
"""In a checkpoint that is a folder: name → size of every file."""
SEEN_S = 90.0
"""How long another node may take to see, over NFS, what the first one sees."""

logger = logging.getLogger(__name__)


class Stop(Protocol):
    """Where a signal handler leaves the signal that asks the run to end."""

    @property
    def requested(self) -> int | None: ...


class Checkpointing(pl.Callback):
    """Save every `every` training batches, after the last one, and before a requested stop.

    A batch that is followed by a validation is saved after it: the checkpoint then holds everything up to its step,
    and nothing is skipped or repeated on resume.

    The module's, the data module's and the optimizer's states are in a Lightning checkpoint anyway; this callback adds
    the global random states and the last step that was logged. Generators that a module owns belong in the module's
    own `on_save_checkpoint`. Give every DataLoader a generator of its own: `iter(loader)` draws from the global one.
    Install the signal handlers that fill `stop` before `fit`. Register this callback last, so that the states of
    other callbacks are those after the step. A validation of its own (`trainer.validate`) saves nothing: outside of
    `fit` Lightning has no place in the data to write down.

    Args:
        before_save: called before anything is written; what it raises (the run is another process's now) ends the run.
    Raises: Interrupted, in training once the checkpoint of a requested stop is on disk, else at once.
    """

    def __init__(
        self,
        folder: Path | str,
        every: int,
        stop: Stop | None = None,
        before_save: Callable[[], None] = lambda: None,
    ) -> None:
        if every < 1:
            raise ValueError(f"checkpoint_every must be >= 1, got {every!r}")
        self._before_save = before_save
        self.folder = Path(folder)
        self.every = every
        self.stop = stop
        self._batches = 0
        self._logged = -1
        self._waiting = False
        self._restored: dict[str, Any] | None = None
        self._handlers: dict[int, Any] = {}

    def on_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Remember how far the logs have come (called by `log_metrics`)."""
        self._logged = max(self._logged, step)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._handlers = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Here and not in load_state_dict: building the loaders in between draws from the global generators.
        if self._restored is not None:
            set_random_state(self._restored)
            self._restored = None
        drop_after(trainer, self._logged)
        self._take_signals_back()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._batches += 1
        due = self._batches % self.every == 0 or _is_last(trainer)
        self._waiting = due or self._requested() is not None
        if self._waiting and not _validation_follows(trainer):
            self._save(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take_signals_back()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._obey()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if self._waiting or self._requested() is not None:
            self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        # every process has random states of its own; the one that is alone has no list
        states = {"random_of": gather(random_state())} if world_size() > 1 else {}
        return {
            "batches": self._batches,
            "logged": self._logged,
            "random": random_state(),
            **states,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._batches = state_dict["batches"]
        self._logged = state_dict["logged"]
        others = state_dict.get("random_of", [])
        own = len(others) == world_size() > 1
        self._restored = others[rank()] if own else state_dict["random"]

    def _requested(self) -> int | None:
        # all processes obey at the same step: each asks equally often
        own = None if self.stop is None else self.stop.requested
        return largest(own or 0) or None

    def _take_signals_back(self) -> None:
        # Lightning has put handlers of its own in front since `setup`: its SIGTERM leaves a validation half-way without
        # a checkpoint and exits with 0, its SLURM handler requeues. It restores the old ones after the run itself.
        if self.stop is not None and threading.current_thread() is threading.main_thread():
            for signum, handler in self._handlers.items():
                if callable(handler):
                    signal.signal(signum, handler)

    def _save(self, trainer: pl.Trainer) -> None:
        self._waiting = False
        self._before_save()
        save_checkpoint(trainer, self.folder)
        self._obey()

    def _obey(self) -> None:
        signum = self._requested()
        if signum is not None:
            # Raising is enough: Lightning calls on_exception, flushes the loggers and passes it on. should_stop
            # would run a validation first and then end `fit` as if all had been done.
            raise Interrupted(signum)


def save_checkpoint(trainer: pl.Trainer, folder: Path) -> Path:
    """Write `folder/last.ckpt` by way of a temporary name; the one before it stays as previous.ckpt."""
    last, previous = folder / LAST, folder / PREVIOUS
    # a name of its own: over NFS another node may take an old one for what it has become
    part = folder / f"part-{gather(uuid.uuid4().hex[:12])[0]}.ckpt"
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("part*.ckpt"):  # by a kill
            _remove(left)
    wait_for_all()
    trainer.save_checkpoint(part)
    wait_for_all()
    if trainer.is_global_zero:
        if part.is_dir():
            _close(part)
        sync(part)
        if last.exists():
            _remove(previous)
            os.replace(last, previous)
        os.replace(part, last)
        sync(folder)
    trainer.strategy.barrier("checkpoint renamed")
    return last


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _close(folder: Path) -> None:
    """Say which files a checkpoint of several processes has; each has written its own to the disk.

    Raises: RunFailed if one of them is not to be seen here.
    """
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    if len(sizes) != world_size():
        raise RunFailed(
            f"a checkpoint of {world_size()} processes must have as many files, got {len(sizes)} in {folder}:"
            " is it on a disk that all nodes share?"
        )
    (folder / FILES).write_text(json.dumps(sizes), encoding="utf-8")
    sync(folder / FILES)


def find_checkpoint(folder: Path | str) -> Path | None:
    """The newest whole checkpoint; one that is cut short or damaged is passed over with a warning.

    Several processes find the same one, each of them reading its share of the files; call it in all.
    """
    for name in (LAST, PREVIOUS):
        path = Path(folder) / name
        if gather(path.exists())[0]:
            # what is there, the first process says: it has written the list
            if gather(bool(_files(path)))[0] and all(gather(_is_readable(path))):
                return path
            if rank() == 0:
                logger.warning("%s is damaged and is passed over", path)
    return None


def _files(path: Path) -> list[Path]:
    """A checkpoint's files; none where one is missing or cut short."""
    if path.is_file():
        return [path]
    try:
        sizes: dict[str, int] = json.loads((path / FILES).read_text("utf-8"))
        whole = all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return []
    return [path / name for name in sorted(sizes)] if whole else []


def _is_readable(path: Path) -> bool:
    """Of several processes, each looks at its share."""
    end = time.monotonic() + SEEN_S
    while not (files := _files(path)) and time.monotonic() < end:
        time.sleep(1.0)
    return bool(files) and all(_is_zip(file) for file in files[rank() :: world_size()])


def _is_zip(path: Path) -> bool:
    # torch writes a zip with a CRC for each member: reading them all costs less than loading.
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError):
        return False


def _is_last(trainer: pl.Trainer) -> bool:
    return trainer.should_stop or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def _validation_follows(trainer: pl.Trainer) -> bool:
    """Will Lightning validate after this batch? (Private in Lightning, which is locked; a test guards it.)"""
    loop = trainer.fit_loop
    fetcher = loop._data_fetcher
    assert fetcher is not None
    return bool(trainer.enable_validation) and loop.epoch_loop._should_check_val_fx(fetcher)
