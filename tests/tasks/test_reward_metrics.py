"""The accuracies of a reward model on held-out comparisons, from scores that are given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf_lightning.tasks import reward_metrics
from rlhf_lightning.tasks.reward_metrics import Judged, accuracies

GOLD = {"best": 3.0, "good": 2.0, "as good": 2.0, "bad": 1.0}


def judged(texts: list[str], ranks: list[int], scores: list[float]) -> Judged:
    return {"completions": texts, "ranks": ranks, "source": "a"}, torch.tensor(scores)


def found(
    validation: list[Judged],
    test: list[Judged],
    monkeypatch: pytest.MonkeyPatch,
    *,
    agreement: float | None = None,
) -> dict[str, float]:
    given = {"validation": validation, "test": test}
    monkeypatch.setattr(
        reward_metrics, "scored", lambda _job, _model, _tok, records, *, what: given[what]
    )

    def gold(record: dict[str, Any], text: str) -> SimpleNamespace | None:
        return SimpleNamespace(total=GOLD[text]) if text in GOLD else None

    mixture = SimpleNamespace(gold=gold, labeler_agreement=lambda: agreement)
    job: Any = SimpleNamespace(mixture=mixture)
    model: Any = SimpleNamespace(config=SimpleNamespace())
    held_out: Any = {"validation": [], "test": []}
    return accuracies(job, model, None, held_out)  # type: ignore[arg-type]


def test_accuracy_is_told_by_the_number_of_completions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two completions: right. Three: 0 of 3, then 1 of 2 beside a tie. Four, all tied: nothing was decided."""
    told = found(
        [
            judged(["x", "y"], [0, 1], [1.0, 0.0]),
            judged(["x", "y", "z"], [0, 1, 2], [0.0, 1.0, 2.0]),
            judged(["x", "y", "z"], [1, 1, 0], [0.0, 2.0, 1.0]),
            judged(["w", "x", "y", "z"], [0, 0, 0, 0], [0.0, 1.0, 2.0, 3.0]),
        ],
        [judged(["x", "y"], [0, 1], [0.0, 1.0])],
        monkeypatch,
    )
    sizes = {name: value for name, value in told.items() if "accuracy_k" in name}
    assert sizes == {"reward/pairwise_accuracy_k2": 1.0, "reward/pairwise_accuracy_k3": 1 / 5}
    assert "reward/gold_accuracy" not in told and "labelers/agreement" not in told


def test_the_test_split_is_of_the_held_out_labelers(monkeypatch: pytest.MonkeyPatch) -> None:
    told = found(
        [judged(["x", "y"], [0, 1], [1.0, 0.0])],
        [judged(["x", "y"], [0, 1], [0.0, 4.0]), judged(["x", "y"], [1, 0], [2.0, 2.0])],
        monkeypatch,
        agreement=0.74,
    )
    assert told["reward/pairwise_accuracy"] == 1.0
    assert told["reward/pairwise_accuracy/test"] == 0.25  # wrong, and equal
    assert told["reward/pairwise_accuracy_held_out_labelers"] == 0.25
    assert told["labelers/agreement"] == 0.74
    # 1, 0, 0, 4, 2, 2: mean 1.5, squares 25 − 6·2.25 = 11.5 over 5
    assert told["reward/score_std"] == pytest.approx((11.5 / 5) ** 0.5)


def test_gold_accuracy_is_of_the_gold_order_and_leaves_its_ties_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both splits together, whatever the labelers said: 2 of 2, then 1 of 3, then a text that has no gold score."""
    told = found(
        [judged(["good", "as good", "bad"], [2, 1, 0], [2.0, 3.0, 1.0])],
        [
            judged(["bad", "best", "good"], [0, 1, 2], [2.0, 1.0, 0.0]),
            judged(["best", "unknown"], [0, 1], [0.0, 1.0]),
        ],
        monkeypatch,
    )
    assert told["reward/gold_accuracy"] == 3 / 5
