from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from rlhf_lightning.data.source import Total
from rlhf_lightning.evaluation import metrics as module
from rlhf_lightning.evaluation.metrics import Reading, model_metrics, win_rates
from rlhf_lightning.evaluation.samples import GOLD_PARTS, ModelSamples
from tests.evaluation.fake import FakeGold, samples


def said(name: str, totals: list[float], **more: Any) -> ModelSamples:
    count = len(totals)
    fields: dict[str, Any] = {
        "name": name,
        "prompts": [
            {"prompt": [{"role": "user", "content": str(i)}], "meta": {"refuse": i == 0}}
            for i in range(count)
        ],
        "responses": [f"answer {i}" for i in range(count)],
        "response_tokens": [2] * count,
        "ended": [True] * count,
        "gold": [FakeGold(t, t, t) for t in totals],
    }
    return ModelSamples(**fields | more)


def test_win_rate_by_hand_with_a_tie() -> None:
    # win, win, tie, loss -> (1 + 1 + 0.5 + 0) / 4
    rates = win_rates({"a": said("a", [1, 1, 0.5, 0]), "b": said("b", [0, 0.5, 0.5, 1])})
    assert rates["a/win_rate_vs_b"] == 2.5 / 4
    assert rates["b/win_rate_vs_a"] == 1.5 / 4
    assert rates["a/tie_rate_vs_b"] == rates["b/tie_rate_vs_a"] == 1 / 4
    assert rates["a/win_rate_vs_b_n"] == 4
    # with two wins and two losses added: 4.5 of 8; Σx² = 4.25; variance 4.25/8 - (4.5/8)²
    variance = 4.25 / 8 - (4.5 / 8) ** 2
    assert rates["a/win_rate_vs_b_ci95"] == pytest.approx(1.959964 * math.sqrt(variance / 8))


def test_interval_of_a_clean_sweep_is_not_zero_and_shrinks() -> None:
    widths = [
        win_rates({"a": said("a", [1.0] * n), "b": said("b", [0.0] * n)})["a/win_rate_vs_b_ci95"]
        for n in (10, 100, 1000)
    ]
    assert widths[0] > widths[1] > widths[2] > 0


def test_rounding_does_not_turn_a_tie_into_a_win() -> None:
    rates = win_rates({"a": said("a", [0.1 + 0.2]), "b": said("b", [0.3])})
    assert rates["a/tie_rate_vs_b"] == 1.0


def test_models_with_different_prompts_are_not_compared() -> None:
    other = said("b", [0, 0])
    other.prompts.reverse()
    with pytest.raises(ValueError, match="a and b must answer the same prompts"):
        win_rates({"a": said("a", [1, 1]), "b": other})


def test_model_metrics_are_means() -> None:
    given = said(
        "m", [0.0, 1.0], scores=[1.0, 2.0], kl_k1=[-1.0, 3.0], kl_k3=[1.0, 3.0], ended=[True, False]
    )
    found = model_metrics(given)
    expected = {
        "gold_score": 0.5,
        "helpful": 0.5,
        "reward_score": 1.5,
        "kl_k1": 1.0,
        "kl_k3": 2.0,
        "eos_rate": 0.5,
    }
    assert {key: found[f"m/{key}"] for key in expected} == expected
    assert found["m/distinct_1"] == 3 / 4  # answer 0 answer 1
    assert found["m/prompts"] == 2


def test_what_was_not_measured_has_no_key() -> None:
    found = model_metrics(said("m", [1.0], gold=None))
    assert not {
        "m/gold_score",
        "m/reward_score",
        "m/kl_k1",
        "m/consistency",
        "m/over_refusal",
    } & set(found)


def test_a_gold_score_without_parts_is_enough() -> None:
    given = said("m", [1.0])
    given.gold = [Total(0.25)]
    found = model_metrics(given)
    assert found["m/gold_score"] == 0.25
    assert not {f"m/{part}" for part in GOLD_PARTS} & set(found)


def test_consistency_compares_asserted_answers_only() -> None:
    given = said("m", [1.0] * 5)
    given.responses = ["=a x", "=a", "=a", "chat", "=a"]
    given.reworded_responses = ["y =a", "=b", "chat", "chat", None]
    reading = Reading(
        answer_items=lambda record, text: "a" if "=a" in text else ("b" if "=b" in text else None)
    )
    # same, different, one-sided (different), neither (left out), no rewording (left out)
    assert model_metrics(given, reading)["m/consistency"] == pytest.approx(1 / 3)


def test_over_refusal_and_missed_refusal_have_their_own_denominators() -> None:
    given = said("m", [1.0] * 4)  # the first prompt should be declined
    given.responses = ["sure", "no", "sure", "sure"]
    reading = Reading(
        is_refusal=lambda record, text: text == "no",
        should_refuse=lambda record: record["meta"]["refuse"],
    )
    found = model_metrics(given, reading)
    assert found["m/over_refusal"] == pytest.approx(1 / 3)
    assert found["m/missed_refusal"] == 1.0


def test_prompts_of_a_source_that_cannot_tell_refusals_are_no_prompts_to_be_answered() -> None:
    given = said("m", [1.0] * 4)
    given.responses = ["no", "no", "sure", "no"]
    should = {0: True, 1: False, 2: False, 3: None}
    places = {id(record): i for i, record in enumerate(given.prompts)}
    reading = Reading(
        is_refusal=lambda record, text: text == "no",
        should_refuse=lambda record: should[places[id(record)]],
    )
    assert model_metrics(given, reading)["m/over_refusal"] == 0.5


def test_every_key_is_in_the_table_of_the_docstring() -> None:
    documented = module.__doc__ or ""
    reading = Reading(
        lambda r, t: t, lambda r, t: False, lambda r: r["prompt"][0]["content"][0] == "T"
    )
    given = replace(samples("sft"), reworded_responses=["x"] * 60)
    found = model_metrics(given, reading) | win_rates({"sft": given, "ppo": samples("ppo")})
    for key in found:
        general = re.sub(r"_vs_(sft|ppo)", "_vs_B", key.split("/")[1])
        assert f"/{general}" in documented, key


def test_lists_of_other_lengths_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"m\.scores must have one element for each of 1 prompts, got 2"
    ):
        said("m", [1.0], scores=[1.0, 2.0])
