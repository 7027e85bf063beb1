"""Which of a sweep's learning curves are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rlhf_lightning.runs.curves import Curves

FIELD = ("val/score", "val/gold_score", "val/kl_k1", "val/eos_rate")
"""What is drawn beside the objectives where it was measured: the signs of overoptimization."""
MOST_PANELS = 6


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
    """`ppo/validation/gold_score` is `val/gold_score` in PPO's curves, `sft/val_loss` is `sft/val/loss` in SFT's."""
    stage, _, name = objective.replace("/validation/", "/").rpartition("/")
    name = name.removeprefix("val_")
    return [f"{stage}/val/{name}", f"val/{name}"]
