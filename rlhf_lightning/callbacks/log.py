"""One way for a stage's numbers to reach every logger, with the x axis that the stage says.

Lightning's own `self.log` counts optimizer steps under manual optimization; a PPO iteration holds many. So stages
call `log_metrics(module, {...}, step=iteration)` and use one axis for all their metrics.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger


def log_metrics(module: pl.LightningModule, metrics: Mapping[str, float], step: int) -> None:
    """Send numbers to all loggers at `step`, and to callbacks that show them (`on_metrics(metrics, step)`)."""
    numbers = {name: float(value) for name, value in metrics.items()}
    trainer = module.trainer
    # what EarlyStopping and its kin monitor
    trainer.callback_metrics.update({name: torch.tensor(v) for name, v in numbers.items()})
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=step)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, "on_metrics"):
            callback.on_metrics(numbers, step)


def drop_after(trainer: pl.Trainer, step: int) -> None:
    """Forget what was logged past `step`, because these steps are about to be made again.

    For loggers and callbacks with a method `drop_after(step)`, and for TensorBoard.
    """
    items: tuple[Any, ...] = (*trainer.loggers, *trainer.callbacks)  # type: ignore[attr-defined]
    for item in items:
        if isinstance(item, TensorBoardLogger):
            _purge_tensorboard(item, step + 1)
        elif hasattr(item, "drop_after"):
            item.drop_after(step)


def log_hparams(
    loggers: Iterable[Logger], config: Mapping[str, Any], metrics: Mapping[str, float]
) -> None:
    """Put the flattened config beside a run's final numbers: TensorBoard's HPARAMS page, and what others have for it.

    Call it once, when the numbers are final; only finite ones are sent.
    """
    finite = {f"final/{name}": value for name, value in metrics.items() if math.isfinite(value)}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(flatten(config), finite or {"final/none": 0.0})
            logger.experiment.flush()
        else:
            logger.log_hyperparams(flatten(config))  # type: ignore[call-arg]
            logger.log_metrics(finite)


@contextmanager
def closing(loggers: Sequence[Logger]) -> Iterator[None]:
    """End what loggers keep open for the process: Weights & Biases would go on with the same run in the next stage."""
    status = "failed"
    try:
        yield
        status = "success"
    finally:
        for logger in loggers:
            logger.finalize(status)
            # by `experiment` a run would be made for a stage that logged nothing
            finish = getattr(getattr(logger, "_experiment", None), "finish", None)
            if callable(finish):
                finish(exit_code=int(status != "success"))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Dotted key → value; what is not a bool, number or text becomes text."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def _purge_tensorboard(logger: TensorBoardLogger, step: int) -> None:
    # What SummaryWriter(purge_step=...) writes. That argument would have to be known before the checkpoint is read.
    from tensorboard.compat.proto import event_pb2

    proto: Any = event_pb2  # generated: its names are not visible to type checkers
    writer = logger.experiment._get_file_writer()
    start = proto.SessionLog(status=proto.SessionLog.START)
    if writer is not None:
        writer.add_event(proto.Event(step=step, file_version="brain.Event:2"))
        writer.add_event(proto.Event(step=step, session_log=start))
        writer.flush()
