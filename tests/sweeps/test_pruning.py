"""The rules on curves that are written by hand."""

from __future__ import annotations

import math

import pytest

from rlhf_lightning.sweeps.pruning import broken_rule
from rlhf_lightning.sweeps.settings import RuleSettings


def test_a_kl_above_the_budget_prunes_and_names_both_numbers() -> None:
    rules = RuleSettings(kl_budget=10)
    assert broken_rule({"val/kl_k1": [0.0, 4.0, 10.0]}, rules) is None
    reason = broken_rule({"val/kl_k1": [0.0, 4.0, 12.5]}, rules)
    assert reason == "val/kl_k1 is 12.5, above rules.kl_budget=10"


@pytest.mark.parametrize(
    ("metric", "rules"),
    [
        ("val/entropy", RuleSettings(min_entropy=0.5)),
        ("val/eos_rate", RuleSettings(min_eos_rate=0.5)),
    ],
)
def test_a_collapse_prunes(metric: str, rules: RuleSettings) -> None:
    assert broken_rule({metric: [1.0, 0.6]}, rules) is None
    reason = broken_rule({metric: [1.0, 0.4]}, rules)
    assert reason is not None
    assert reason.startswith(f"{metric} is 0.4, below rules.min_")


def test_a_learned_score_that_rises_while_gold_falls_prunes() -> None:
    rules = RuleSettings(hacking_validations=2, warmup_validations=0)
    curves = {"val/score": [0.0, 1.0, 2.0, 3.0], "val/gold_score": [0.5, 0.6, 0.55, 0.5]}
    # from the second validation on: twice up (1 → 2 → 3), twice down (0.6 → 0.55 → 0.5)
    reason = broken_rule(curves, rules)
    assert reason is not None
    assert "rose from 1 to 3 while val/gold_score fell from 0.6 to 0.5" in reason


@pytest.mark.parametrize(
    "curves",
    [
        # gold recovers at the last validation
        {"val/score": [0.0, 1.0, 2.0, 3.0], "val/gold_score": [0.5, 0.6, 0.55, 0.56]},
        # both fall: bad, but no hacking
        {"val/score": [3.0, 2.0, 1.0, 0.0], "val/gold_score": [0.5, 0.4, 0.3, 0.2]},
        # two validations are one step: too few
        {"val/score": [0.0, 1.0], "val/gold_score": [0.5, 0.4]},
        # no gold score is known
        {"val/score": [0.0, 1.0, 2.0, 3.0]},
    ],
)
def test_other_curves_are_left_alone(curves: dict[str, list[float]]) -> None:
    rules = RuleSettings(hacking_validations=2, warmup_validations=0)
    assert broken_rule(curves, rules) is None


def test_no_rule_looks_at_the_warmup() -> None:
    rules = RuleSettings(kl_budget=1, warmup_validations=2)
    # metrics of every iteration are no validations
    assert broken_rule({"val/kl_k1": [5.0, 5.0], "rollout/score": [0.0] * 9}, rules) is None
    assert broken_rule({"val/kl_k1": [5.0, 5.0, 5.0]}, rules) is not None


def test_what_is_not_a_number_breaks_no_rule() -> None:
    rules = RuleSettings(kl_budget=1, min_entropy=1, warmup_validations=0)
    curves = {"val/kl_k1": [math.nan], "val/entropy": [math.nan]}
    assert broken_rule(curves, rules) is None


def test_rules_that_are_off_never_prune() -> None:
    curves = {"val/kl_k1": [1e9] * 5, "val/entropy": [0.0] * 5, "val/eos_rate": [0.0] * 5}
    assert broken_rule(curves, RuleSettings()) is None
    assert not RuleSettings().active
    assert RuleSettings(kl_budget=1).active
