"""A trial of a sweep reports its validations to the study, and ends where the study or a rule gives it up."""

from __future__ import annotations

import logging
import math
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn

from rlhf_lightning.errors import Pruned
from rlhf_lightning.runs import Run
from rlhf_lightning.runs.curves import Curves, read_metrics
from rlhf_lightning.sweeps.child import TrialOrders, open_trial, orders
from rlhf_lightning.sweeps.pruning import broken_rule

log = logging.getLogger("rlhf_lightning")


def pruning(run: Run, round_: int) -> list[pl.Callback]:
    """The callback, if this process is a trial that may be pruned."""
    given = orders()
    if given is None or not (given.pruner.name != "none" or given.rules.active):
        return []
    return [Pruning(run, given, round_)]


class Pruning(pl.Callback):
    """Looks at metrics.csv after each validation: so a trial that was continued reports all it ever measured.

    A stage that does not measure the pruner's metric is never pruned by it: SFT in a search over PPO.
    Raises (in training, on every process): Pruned.
    """

    def __init__(self, run: Run, given: TrialOrders, round_: int = 1) -> None:
        self.run, self.given, self.round = run, given, round_
        self._trial: Any = None
        self._left = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn is not TrainerFn.FITTING:
            return
        reason = self._reason(trainer) if trainer.is_global_zero else None
        reason = trainer.strategy.broadcast(reason, src=0)
        # a run that has taken its last step is not given up: all its time is spent
        over = trainer.should_stop or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if reason is not None and not over:
            self.run.prune(reason, self._last())
            raise Pruned(reason)

    def _reason(self, trainer: pl.Trainer) -> str | None:
        curves = read_metrics(self.run.metrics_csv)
        values = {name: [value for _, value in points] for name, points in curves.items()}
        return broken_rule(values, self.given.rules) or self._compared(curves, trainer)

    def _compared(self, curves: Curves, trainer: pl.Trainer) -> str | None:
        """What Optuna's pruner says of the trial so far."""
        pruner = self.given.pruner
        points = curves.get(pruner.metric or "", [])
        if pruner.name == "none" or not points or self._left:
            return None
        if self._trial is None:
            self._trial = open_trial(self.given)
        # rounds follow each other on one axis
        before = (self.round - 1) * int(trainer.num_training_batches)
        # the study compares in its objective's direction: a metric of the other one is turned round
        turned = (pruner.direction or self.given.directions[0]) != self.given.directions[0]
        sign = -1.0 if turned else 1.0
        if not _report(self._trial, [(before + step, sign * value) for step, value in points]):
            log.warning("the sweep no longer waits for trial %d", self.given.number)
            self._left = True
            return None
        step, value = points[-1]
        if not math.isfinite(value) or not self._trial.should_prune():
            return None
        return f"{pruner.name}: {pruner.metric} is {value:.4g} at step {before + step}"

    def _last(self) -> dict[str, float]:
        """The newest value of every curve, under the curve's name."""
        curves = read_metrics(self.run.metrics_csv)
        return {name: points[-1][1] for name, points in curves.items() if points}


def _report(trial: Any, points: list[tuple[int, float]]) -> bool:
    """Report what the study does not know yet; False if it took the trial for lost."""
    import optuna

    known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    try:
        for step, value in points:
            if step not in known:
                trial.report(value, step)
    except optuna.exceptions.UpdateFinishedTrialError:
        return False
    return True
