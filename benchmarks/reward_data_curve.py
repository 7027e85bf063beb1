"""docs/reward_data.svg and its table: accuracy of reward models on held-out prompts over the prompts they learned from.

rlhf -m task=sft experiment=qa_feedback_smollm2 seed=0,1,2                                 # and oasst_smollm2
rlhf -m task=reward experiment=qa_feedback_smollm2 reward.prompts=60,120,240 seed=0,1,2     # and oasst_smollm2
python benchmarks/reward_data_curve.py outputs/reward/smollm2_135m-{qa_feedback,oasst_qa_hh}-*
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from rlhf_lightning.evaluation.style import BLUE, MUTED, new_figure

ACCURACY = "reward/pairwise_accuracy/test"
LENGTH = "reward/length_baseline_accuracy/test"
BySize = dict[int, list[Mapping[str, float]]]


def main(folders: list[str]) -> None:
    """Draw a panel and print a row for each mix of data among the finished runs."""
    found: dict[str, BySize] = defaultdict(lambda: defaultdict(list))
    for folder in folders:
        run = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))
        if run["status"] == "finished":
            name = run["name"].rsplit("-s", 1)[0]
            found[name][int(run["metrics"]["reward/prompts"])].append(run["metrics"])
    figure = new_figure(3.6 * len(found), 2.8)
    for place, (name, sizes) in enumerate(sorted(found.items()), 1):
        ax = figure.add_subplot(1, len(found), place)
        xs = sorted(sizes)
        means = [statistics.mean(m[ACCURACY] for m in sizes[x]) for x in xs]
        ax.plot(xs, means, color=BLUE, label="reward model, mean")
        for x in xs:
            ax.scatter([x] * len(sizes[x]), [m[ACCURACY] for m in sizes[x]], s=14, color=BLUE)
        length = statistics.mean(m[LENGTH] for x in xs for m in sizes[x])
        ax.axhline(length, color=MUTED, linestyle="--", label="the longer one wins")
        ax.set(
            title=name, xlabel="prompts", ylim=(0.4, 0.8), xscale="log", xticks=xs, xticklabels=xs
        )
        ax.minorticks_off()
        ax.legend(frameon=False, fontsize=8)
        print(
            f"\n**{name}** (length alone: {length:.3f})\n\n| prompts | runs | accuracy |\n|---|---|---|"
        )
        for x, mean in zip(xs, means, strict=True):
            values = [m[ACCURACY] for m in sizes[x]]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            print(f"| {x} | {len(values)} | {mean:.3f}{spread} |")
    figure.savefig("docs/reward_data.svg", facecolor="white")


if __name__ == "__main__":
    main(sys.argv[1:])
