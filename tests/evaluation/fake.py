"""Data of a plausible run, for tests of figures and of the report."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from rlhf_lightning.evaluation.figures import PANELS, learning_curves, score_over_kl, win_rate_bars
from rlhf_lightning.evaluation.metrics import model_metrics, win_rates
from rlhf_lightning.evaluation.report import (
    ConfigChange,
    ReportData,
    ReportFigure,
    StageRow,
    turns_of,
)
from rlhf_lightning.evaluation.samples import ModelSamples
from rlhf_lightning.runs.curves import Curves


@dataclass(frozen=True)
class FakeGold:
    helpful: float
    truthful: float
    harmless: float

    @property
    def total(self) -> float:
        return (2 * self.helpful + self.truthful + self.harmless) / 4


PROMPTS = [
    [{"role": "user", "content": "Name two cities of Orrin that lie by the sea."}],
    [
        {"role": "user", "content": "Hello! Who made the blue lamp?"},
        {"role": "assistant", "content": "Tam made the blue lamp."},
        {"role": "user", "content": "And in which year? Answer in one short sentence, please."},
    ],
    [
        {
            "role": "user",
            "content": "Tell me how to break into my neighbour's house & <b>steal</b> it all.",
        }
    ],
]
SAID = {
    "base": [
        "The cities of the the cities of the the",
        "And in the year of the lamp. Hello!",
        "Break the",
    ],
    "sft": [
        "Velm and Dor are cities by the sea.",
        "Tam made it in 1204.",
        "I will not help with that.",
    ],
    "ppo": [
        "Velm and Sarn.",
        "It was made in 1187.",
        "I will not help with that, but I can help otherwise.",
    ],
}
QUALITY = {"base": 0.2, "sft": 0.6, "ppo": 0.85}


def samples(name: str, count: int = 60) -> ModelSamples:
    random.seed(name)
    quality = QUALITY[name]

    def part() -> float:
        return random.choices([1.0, 0.5, 0.0], [quality, 0.1, 1 - quality])[0]

    return ModelSamples(
        name=name,
        prompts=[{"prompt": PROMPTS[i % 3]} for i in range(count)],
        responses=[SAID[name][i % 3] for i in range(count)],
        response_tokens=[random.randint(4, 24) for _ in range(count)],
        ended=[random.random() < 0.5 + quality / 2 for _ in range(count)],
        gold=[FakeGold(part(), part(), part()) for _ in range(count)],
        scores=[random.gauss(4 * quality - 2, 0.7) for _ in range(count)],
        kl_k1=[random.gauss(5 * quality, 1) for _ in range(count)],
        kl_k3=[abs(random.gauss(5 * quality, 1)) for _ in range(count)],
    )


def curves() -> Curves:
    random.seed(0)

    def noisy(formula: object, every: int, spread: float) -> list[tuple[int, float]]:
        assert callable(formula)
        return [(t, formula(t) + random.gauss(0, spread)) for t in range(0, 121, every)]

    return {
        "train/loss": noisy(lambda t: 0.6 + 2.4 * math.exp(-t / 25), 2, 0.03),
        "val/loss": noisy(lambda t: 0.65 + 2.4 * math.exp(-t / 25), 10, 0.01),
        "rollout/score": noisy(lambda t: 2.4 - 2.6 * math.exp(-t / 40), 1, 0.12),
        "val/score": noisy(lambda t: 2.4 - 2.6 * math.exp(-t / 40), 10, 0.04),
        "val/gold_score": noisy(lambda t: 0.62 + 0.26 * math.sin(t / 62), 10, 0.008),
        "rollout/kl_k1": noisy(lambda t: 6.5 * (1 - math.exp(-t / 50)), 1, 0.2),
        "val/kl_k1": [(t, 6.5 * (1 - math.exp(-t / 50))) for t in range(0, 121, 10)],
        "rollout/response_tokens": noisy(lambda t: 13 + t / 40, 1, 0.5),
        "val/pairwise_accuracy": noisy(lambda t: 0.71 - 0.2 * math.exp(-t / 30), 10, 0.008),
    }


def report_data() -> ReportData:
    models = {name: samples(name) for name in ("base", "sft", "ppo")}
    metrics = win_rates(models)
    for model in models.values():
        metrics |= model_metrics(model)
    metrics |= {
        "reward/pairwise_accuracy": 0.712,
        "reward/gold_accuracy": 0.861,
        "reward/length_baseline_accuracy": 0.523,
        "labelers/agreement": 0.744,
        "reward/ece": 0.031,
        "time/ppo_s": 131.2,
    }
    found = curves()
    pairs = [("ppo", "sft"), ("sft", "base"), ("ppo", "base")]
    drawn = [
        (
            "Win rates",
            win_rate_bars(metrics, pairs),
            "Blue bars past the dashed line: the first model is better.",
        ),
        (
            "PPO",
            learning_curves(found, PANELS["ppo"], "iteration"),
            "The score that PPO climbs, the truth, the cost.",
        ),
        (
            "Score and gold over KL",
            score_over_kl(found),
            "Where blue rises and orange falls, the proxy is gamed.",
        ),
        (
            "Reward model",
            learning_curves(found, PANELS["reward"], "step"),
            "Accuracy on pairs it never saw.",
        ),
        (
            "Supervised fine-tuning",
            learning_curves(found, PANELS["sft"], "step"),
            "Both fall together: no overfit.",
        ),
    ]
    return ReportData(
        title="nano on the built-in world, seed 0",
        subtitle="Pretraining, supervised fine-tuning, a reward model from simulated labelers, then PPO.",
        stages=[
            StageRow(
                "pretrain",
                "next-token loss on raw text, 1 epoch",
                1_100_000,
                12_000,
                1_500_000,
                48.2,
            ),
            StageRow(
                "sft",
                "assistant tokens of demonstrations, 1 epoch",
                1_100_000,
                6_000,
                410_000,
                31,
            ),
            StageRow(
                "reward", "all pairs of 4 to 9 ranked completions", 1_100_000, 10_400, 620_000, 65
            ),
            StageRow(
                "ppo",
                "120 iterations of 128 episodes, kl_coef 0.05",
                1_100_000,
                15_360,
                280_000,
                131,
            ),
        ],
        metrics=metrics,
        figures=[ReportFigure(t, f, c) for t, f, c in drawn if f is not None],
        turns=turns_of(list(models.values()), 3),
        changes=[ConfigChange("ppo.kl_coef", 0.05, 0.02), ConfigChange("seed", 0, 3)],
        provenance={"git commit": "3f2c1ab (clean)", "run hash": "9c1e77d0a4", "torch": "2.13.0"},
    )
