"""The learning curves of a trial's run: of one stage, or of all stages of a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rlhf_lightning.runs.curves import Curves, read_metrics

STAGES = ("sft", "reward", "ppo")
"""Stages of a round, by the names that a pipeline's links have."""
FIELD = ("val/score", "val/gold_score", "val/kl_k1", "val/eos_rate")
"""What is drawn beside the objectives where it was measured: the signs of overoptimization."""
MOST_PANELS = 6


def run_curves(run: Path) -> Curves:
    """Every scalar of a run; the rounds of a pipeline follow each other on one axis."""
    curves: Curves = {}
    folders = [run, run / "pretrain"]
    rounds = (folder for folder in run.glob("round-*") if folder.name[6:].isdigit())
    for folder in sorted(rounds, key=lambda found: int(found.name[6:])):
        folders += [folder / stage for stage in STAGES]
    for folder in folders:
        for name, points in read_metrics(folder / "metrics.csv").items():
            before = curves.setdefault(name, [])
            last = before[-1][0] if before else 0
            before += [(last + step, value) for step, value in points]
    return curves


def curves_to_show(
    measured: Iterable[Curves], objectives: Sequence[str], pruner_metric: str | None
) -> list[str]:
    """Metrics of validations: the pruner's, the objectives' own, those of the field; without any of them, all."""
    known = list(dict.fromkeys(name for curves in measured for name in curves))
    wanted = [pruner_metric or ""]
    for objective in objectives:
        wanted += _names_while_training(objective)
    wanted += FIELD
    found = [name for name in dict.fromkeys(wanted) if name in known]
    held_out = [name for name in known if name.startswith("val/") or "/val/" in name]
    return (found or held_out)[:MOST_PANELS]


def _names_while_training(objective: str) -> list[str]:
    """`ppo/gold_score` is `val/gold_score` in PPO's curves, `sft/val_loss` is `sft/val/loss` in SFT's."""
    stage, _, name = objective.rpartition("/")
    name = name.removeprefix("val_")
    return [f"{stage}/val/{name}", f"val/{name}"]
