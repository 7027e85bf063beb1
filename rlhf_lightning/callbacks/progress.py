"""How far a stage is, with the numbers that matter for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

NUMBERS: dict[str, dict[str, str]] = {
    "pretrain": {"loss": "train/loss", "val": "val/loss", "tokens/s": "time/tokens_per_s"},
    "sft": {"loss": "train/loss", "val": "val/loss", "tokens/s": "time/tokens_per_s"},
    "reward": {
        "loss": "train/loss",
        "accuracy": "val/pairwise_accuracy",
        "tokens/s": "time/tokens_per_s",
    },
    "ppo": {
        "score": "rollout/score",
        "kl_k1": "rollout/kl_k1",
        "gold": "val/gold_score",
        "tokens/s": "time/tokens_per_s",
    },
}
"""Stage → label → metric. A metric's name also matches after a stage prefix (`sft/train/loss`)."""

LINES = 10
"""Plain lines of one run where stdout is not a terminal."""

LINE_EVERY_S = 5.0
"""Least time between two plain lines of work that has no numbers to show."""


class StageProgress(ProgressBar):
    """A rich bar on a terminal; elsewhere a plain line every tenth of the run.

    A subclass of Lightning's ProgressBar, so that the Trainer adds none of its own.
    """

    def __init__(
        self, stage: str, numbers: Mapping[str, str] | None = None, console: Console | None = None
    ) -> None:
        super().__init__()
        self.stage = stage
        self.numbers = dict(numbers if numbers is not None else NUMBERS.get(stage, {}))
        self.console = console or Console(highlight=False)
        self._enabled = True
        self._latest: dict[str, float] = {}
        self._bar: Progress | None = None
        self._started = 0.0
        self._tenth = 0

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def on_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Take the newest values of what is shown (called by `log_metrics`)."""
        for label, key in self.numbers.items():
            for name, value in metrics.items():
                if name == key or name.endswith(f"/{key}"):
                    self._latest[label] = value

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.monotonic()
        done, total = _batches(trainer)
        self._tenth = LINES * done // total if total else 0
        if self._enabled and self.console.is_terminal:
            self._bar = _bar(self.console)
            self._bar.add_task(self.stage, total=total, completed=done, numbers="")
            self._bar.start()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not self._enabled:
            return
        done, total = _batches(trainer)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, numbers=self._text())
        elif total and LINES * done // total > self._tenth:
            self._tenth = LINES * done // total
            seconds = time.monotonic() - self._started
            _print_line(self.console, self.stage, done, total, seconds, self._text())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._close()  # a bar that is left running hides the error line and the cursor

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _text(self) -> str:
        shown = [(label, self._latest[label]) for label in self.numbers if label in self._latest]
        return "  ".join(f"{label} {_short(value)}" for label, value in shown)


@contextmanager
def counted(
    label: str, total: int, console: Console | None = None, *, every_s: float = LINE_EVERY_S
) -> Iterator[Callable[[int], None]]:
    """Progress of work without a Trainer: `with counted("evaluate", 500) as done: ...; done(32)`.

    A bar on a terminal; elsewhere a plain line where another tenth is done, but none sooner than `every_s` seconds
    after the start or the last line: work that is soon over prints nothing.
    """
    console = console or Console(highlight=False)
    start = last = time.monotonic()
    reached = tenth = 0
    bar = _bar(console) if console.is_terminal and total else None
    if bar is not None:
        bar.add_task(label, total=total, numbers="")
        bar.start()

    def done(count: int) -> None:
        nonlocal reached, tenth, last
        reached += count
        now = time.monotonic()
        if bar is not None:
            bar.update(bar.task_ids[0], completed=reached)
        elif total and LINES * reached // total > tenth and now - last >= every_s:
            tenth, last = LINES * reached // total, now
            _print_line(console, label, reached, total, now - start)

    try:
        yield done
    finally:
        if bar is not None:
            bar.stop()


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=4,
    )


def _print_line(
    console: Console, label: str, done: int, total: int, seconds: float, numbers: str = ""
) -> None:
    line = f"{label:<8} {done:>{len(str(total))}}/{total}  {seconds:4.0f} s  {numbers}"
    console.print(line.rstrip(), soft_wrap=True, markup=False)


def _batches(trainer: pl.Trainer) -> tuple[int, int | None]:
    """Training batches done and planned over all epochs; None where the end is not known."""
    done = trainer.fit_loop.total_batch_idx + 1
    epochs, batches = trainer.max_epochs, trainer.num_training_batches
    if epochs is None or epochs < 1 or math.isinf(batches):
        return done, None
    return done, int(batches) * epochs


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
