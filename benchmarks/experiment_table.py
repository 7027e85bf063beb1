"""docs/experiments.md's tables and conversations, from finished pipelines of the experiments on real text.

python benchmarks/experiment_table.py outputs/pipeline/smollm2_135m-*    # one row a run, then mean ± standard deviation
"""

from __future__ import annotations

import json
import statistics
import sys
import textwrap
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONVERSATIONS = 5

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


def conversations(folder: Path) -> None:
    """Print the first held-out prompts of a run with what the models answered, as it stands."""
    rows = json.loads((folder / "evaluate/conversations.json").read_text(encoding="utf-8"))
    print(
        f"The first {CONVERSATIONS} of the held-out prompts, first seed, nothing picked and nothing edited:\n"
    )
    for row in rows[:CONVERSATIONS]:
        said = [(turn["role"], turn["content"], None) for turn in row["prompt"]]
        answers = row["answers"].items()
        said += [(name, found["response"], found["score"]) for name, found in answers]
        print("```text")
        for speaker, text, score in said:
            label = speaker if score is None else f"{speaker} {score:+.2f}"
            print(textwrap.indent(text.strip(), " " * 14).replace(" " * 14, f"{label:<14}", 1))
        print("```\n")


def main(folders: list[str]) -> None:
    """Print a table and conversations for each mix of data among the runs."""
    by_name: dict[str, list[tuple[int, Path, dict[str, Any]]]] = defaultdict(list)
    for folder in folders:
        run = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))
        if run["status"] == "finished":
            found = (run["seed"], Path(folder), run)
            by_name[Path(folder).name.rsplit("-s", 1)[0]].append(found)
    for name, found in sorted(by_name.items()):
        found.sort(key=lambda item: item[0])
        table(name, [run for _, _, run in found])
        conversations(found[0][1])


if __name__ == "__main__":
    main(sys.argv[1:])
