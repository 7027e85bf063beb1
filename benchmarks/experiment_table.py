"""The README's table of experiments on real text, from the metrics.json of finished pipelines.

python benchmarks/experiment_table.py outputs/pipeline/smollm2_135m-*    # one row a run, then mean ± standard deviation
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLUMNS = {
    "reward: held-out acc.": "reward/pairwise_accuracy/test",
    "length-only acc.": "reward/length_baseline_accuracy/test",
    "score, in SFT's sd": "ppo/reward_gain_in_sft_sd",
    "KL k1": "ppo/kl_k1",
    "tokens SFT": "sft/response_tokens",
    "tokens PPO": "ppo/response_tokens",
    "distinct-2 SFT": "sft/distinct_2",
    "distinct-2 PPO": "ppo/distinct_2",
    "EOS SFT": "sft/eos_rate",
    "EOS PPO": "ppo/eos_rate",
}


def known_columns(metrics: Mapping[str, float]) -> dict[str, str]:
    """Columns of the known scores that this experiment measures."""
    names = sorted(
        key.removeprefix("sft/known/") for key in metrics if key.startswith("sft/known/")
    )
    columns: dict[str, str] = {}
    for name in names:
        columns |= {f"{name} {model}": f"{model.lower()}/known/{name}" for model in ("SFT", "PPO")}
        columns[f"{name} p"] = f"ppo/known/{name}_p_vs_sft"
    return columns


def cell(value: float | None) -> str:
    """Three digits, or a dash where the experiment has no such number."""
    return "–" if value is None else f"{value:.3f}"


def table(name: str, runs: list[dict[str, Any]]) -> None:
    """Print one experiment's runs."""
    columns = {k: v for k, v in COLUMNS.items() if any(v in run["metrics"] for run in runs)}
    columns |= known_columns(runs[0]["metrics"])
    print(f"**{name}**\n")
    print("| seed | " + " | ".join(columns) + " | minutes |")
    print("|---|" + "---|" * (len(columns) + 1))
    for run in runs:
        cells = [cell(run["metrics"].get(key)) for key in columns.values()]
        print(f"| {run['seed']} | " + " | ".join(cells) + f" | {run['duration_s'] / 60:.1f} |")
    if len(runs) > 1:
        series = [[run["metrics"][key] for run in runs] for key in columns.values()]
        series.append([run["duration_s"] / 60 for run in runs])
        spread = [f"{statistics.mean(s):.2f} ± {statistics.stdev(s):.2f}" for s in series]
        print("| mean ± sd | " + " | ".join(spread) + " |")
    print()


def main(folders: list[str]) -> None:
    """Print a table for each mix of data among the runs."""
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for folder in folders:
        run = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))
        if run["status"] == "finished":
            by_name[Path(folder).name.rsplit("-s", 1)[0]].append(run)
    for name, runs in sorted(by_name.items()):
        table(name, sorted(runs, key=lambda run: run["seed"]))


if __name__ == "__main__":
    main(sys.argv[1:])
