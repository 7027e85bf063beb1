"""The README's table of experiments on real text, and docs/experiments.md's conversations, from finished pipelines.

python benchmarks/experiment_table.py outputs/pipeline/*                  # a row for each run, mean ± deviation
python benchmarks/experiment_table.py --conversations outputs/pipeline/*  # the first held-out prompts and answers
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import textwrap
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

CONVERSATIONS = 5
Metrics = Mapping[str, float]
Run = tuple[int, Path, Metrics]
"""Seed, folder and metrics of a finished pipeline."""


def known(metrics: Metrics, model: str) -> float | None:
    """The known score of one model's answers, where the experiment has one."""
    found = [v for k, v in metrics.items() if k.startswith(f"{model}/known/") and "_vs_" not in k]
    return found[0] if found else None


def p_value(metrics: Metrics) -> float | None:
    """Of PPO's known score against SFT's."""
    found = [v for k, v in metrics.items() if k.startswith("ppo/known/") and "_p_vs_sft" in k]
    return found[0] if found else None


COLUMNS: dict[str, Callable[[Metrics], float | None]] = {
    "score, SFT's sd": lambda m: m.get("ppo/reward_gain_in_sft_sd"),
    "KL": lambda m: m.get("ppo/kl_k1"),
    "known SFT": lambda m: known(m, "sft"),
    "known PPO": lambda m: known(m, "ppo"),
    "p": p_value,
    "tokens SFT": lambda m: m.get("sft/response_tokens"),
    "tokens PPO": lambda m: m.get("ppo/response_tokens"),
    "distinct-2 SFT": lambda m: m.get("sft/distinct_2"),
    "distinct-2 PPO": lambda m: m.get("ppo/distinct_2"),
    "EOS SFT": lambda m: m.get("sft/eos_rate"),
    "EOS PPO": lambda m: m.get("ppo/eos_rate"),
    "reward acc.": lambda m: m.get("reward/pairwise_accuracy/test"),
    "longer wins": lambda m: m.get("reward/length_baseline_accuracy/test"),
}


def cell(column: str, value: float | None) -> str:
    """Two digits, or a dash where the experiment has no such number."""
    if value is None:
        return "–"
    if column == "p":
        return "< 0.001" if value < 0.001 else f"{value:.3f}"
    return f"{value:.0f}" if column == "minutes" else f"{value:.2f}"


def mean_and_deviation(column: str, values: list[float | None]) -> str:
    """`0.12 ± 0.03` over the seeds."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < 2 or column == "p":
        return ""
    return f"{cell(column, statistics.mean(numbers))} ± {cell(column, statistics.stdev(numbers))}"


def experiment(folder: Path) -> str:
    """As the command line named it, else what is trained on what."""
    given = (folder / ".hydra/overrides.yaml").read_text(encoding="utf-8")
    named = re.search(r"experiment=(\w+)", given)
    return named[1] if named else folder.name.rsplit("-s", 1)[0]


def stage_minutes(folder: Path) -> float:
    """The time of all stages, also of those that an earlier pipeline ran."""
    stages = [*folder.glob("*/metrics.json"), *folder.glob("round-*/*/metrics.json")]
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in stages]
    return sum(run["duration_s"] for run in runs) / 60


def rows(name: str, found: list[Run]) -> None:
    """Print one experiment's runs."""
    series = {
        column: [find(metrics) for _, _, metrics in found] for column, find in COLUMNS.items()
    } | {"minutes": [stage_minutes(folder) for _, folder, _ in found]}
    for place, (seed, _, _) in enumerate(found):
        cells = [cell(column, values[place]) for column, values in series.items()]
        print(f"| {name} | {seed} | {' | '.join(cells)} |")
    spread = [mean_and_deviation(column, values) for column, values in series.items()]
    print(f"| | mean ± sd | {' | '.join(spread)} |")


def conversations(folder: Path) -> None:
    """Print the first held-out prompts of a run with what the models answered, as it stands."""
    found = json.loads((folder / "evaluate/conversations.json").read_text(encoding="utf-8"))
    for row in found[:CONVERSATIONS]:
        said = [(turn["role"], turn["content"], None) for turn in row["prompt"]]
        answers = row["answers"].items()
        said += [(name, answer["response"], answer["score"]) for name, answer in answers]
        print("```text")
        for speaker, text, score in said:
            label = speaker if score is None else f"{speaker} {score:+.2f}"
            lines = textwrap.indent(text.strip() or "(nothing)", " " * 14)
            print(lines.replace(" " * 14, f"{label:<14}", 1))
        print("```\n")


def main() -> None:
    """Read the folders and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--conversations", action="store_true")
    given = parser.parse_args()
    by_name: dict[str, list[Run]] = defaultdict(list)
    for folder in given.folders:
        run = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        if run["status"] == "finished":
            by_name[experiment(folder)].append((run["seed"], folder, run["metrics"]))
    if not given.conversations:
        print(f"| experiment | seed | {' | '.join(COLUMNS)} | minutes |")
        print("|---" * (len(COLUMNS) + 3) + "|")
    for name, found in sorted(by_name.items()):
        found.sort(key=lambda item: item[0])
        if given.conversations:
            print(f"### {name}, seed {found[0][0]}\n")
            conversations(found[0][1])
        else:
            rows(name, found)


if __name__ == "__main__":
    main()
