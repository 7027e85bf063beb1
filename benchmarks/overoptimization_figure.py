"""docs/overoptimization.svg: learned and gold score over KL, from PPO runs without a KL penalty.

rlhf experiment=overoptimization seed=1
python benchmarks/overoptimization_figure.py outputs/latest/round-1/ppo
"""

from __future__ import annotations

import sys
from pathlib import Path

from rlhf_lightning.evaluation.figures import score_over_kl
from rlhf_lightning.runs.curves import read_metrics


def main(run: str) -> None:
    """Draw the run's validation scores."""
    figure = score_over_kl(read_metrics(Path(run) / "metrics.csv"))
    if figure is None:
        raise SystemExit(f"{run}: metrics.csv has no validation scores")
    figure.savefig("docs/overoptimization.svg", facecolor="white")


if __name__ == "__main__":
    main(sys.argv[1])
