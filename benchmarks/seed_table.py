"""The README's table of seeds, from the metrics.json of finished pipelines.

python benchmarks/seed_table.py outputs/pipeline/nano-demo-s*    # one row a run, then mean ± standard deviation
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

COLUMNS = {
    "gold base": "base/gold_score",
    "gold SFT": "sft/gold_score",
    "gold PPO": "ppo/gold_score",
    "SFT beats base": "sft/win_rate_vs_base",
    "PPO beats SFT": "ppo/win_rate_vs_sft",
    "reward: gold acc.": "reward/gold_accuracy",
    "reward: labeler acc.": "reward/pairwise_accuracy",
    "length-only acc.": "reward/length_baseline_accuracy",
    "labelers agree": "labelers/agreement",
    "KL k1": "ppo/kl_k1",
    "EOS rate": "ppo/eos_rate",
}


def main(folders: list[str]) -> None:
    """Print the table as Markdown."""
    runs = [json.loads((Path(f) / "metrics.json").read_text(encoding="utf-8")) for f in folders]
    runs = sorted((r for r in runs if r["status"] == "finished"), key=lambda r: r["seed"])
    print("| seed | " + " | ".join(COLUMNS) + " |")
    print("|---|" + "---|" * len(COLUMNS))
    for run in runs:
        cells = [f"{run['metrics'][key]:.3f}" for key in COLUMNS.values()]
        print(f"| {run['seed']} | " + " | ".join(cells) + " |")
    if len(runs) > 1:
        columns = [[r["metrics"][key] for r in runs] for key in COLUMNS.values()]
        spread = [f"{statistics.mean(c):.2f} ± {statistics.stdev(c):.2f}" for c in columns]
        print("| mean ± sd | " + " | ".join(spread) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
