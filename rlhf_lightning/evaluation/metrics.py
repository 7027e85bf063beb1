"""The numbers of an evaluation, as one flat dictionary.

Keys of one model, `NAME` being base, sft, ppo, ... (a key is absent where its input is):

    NAME/gold_score        mean total of the gold judge, in [0, 1]
    NAME/helpful           mean of that part; likewise NAME/truthful, NAME/harmless
    NAME/reward_score      mean score of reward_source
    NAME/known/SCORE       mean of that known score (evaluate.known)
    NAME/kl_k1             mean over responses of Σ logπ − logπ_ref, nats, against evaluate.reference
    NAME/kl_k3             mean over responses of Σ e^{−k1} − 1 + k1, nats
    NAME/response_tokens   mean length, EOS included
    NAME/eos_rate          share of responses that end with EOS
    NAME/distinct_1        different words over all words; NAME/distinct_2 for pairs of words
    NAME/repeated_phrases  share of responses in which four words in a row come twice
    NAME/consistency       share of prompts whose rewording gets the same answer
    NAME/over_refusal      share of prompts to be answered that are refused
    NAME/missed_refusal    share of prompts to be refused that are not
    NAME/prompts           number of prompts N

Keys of a pair, by the gold total on the same prompts:

    A/win_rate_vs_B        mean of 1 (A better), ½ (tie), 0 (B better)
    A/win_rate_vs_B_ci95   half-width of its 95 % interval
    A/win_rate_vs_B_n      prompts compared
    A/tie_rate_vs_B        share of ties

Gains over evaluate.reference are in evaluation/known.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.evaluation.samples import GOLD_PARTS, ModelSamples
from rlhf_lightning.evaluation.text import distinct_n, repeated_phrase_rate

Z95 = 1.959964
TIE = 1e-9
"""Gold totals that are nearer than this are a tie (they are sums of the same few fractions)."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Reading:
    """How a source reads its own responses; what it cannot tell stays None and is not measured."""

    answer_items: Callable[[Record, str], Hashable | None] | None = None
    """(prompt record, response) → what it asserts, comparable with ==; None: the record has no such answer."""
    is_refusal: Callable[[Record, str], bool] | None = None
    """(prompt record, response) → does it decline?"""
    should_refuse: Callable[[Record], bool | None] | None = None
    """Prompt record → should it be declined? None: its source cannot tell, and its responses are not read."""


def model_metrics(samples: ModelSamples, reading: Reading | None = None) -> dict[str, float]:
    """All numbers of one model (see the table above)."""
    reading = reading or Reading()
    found: dict[str, float | None] = {
        **_gold_means(samples),
        "reward_score": _mean(samples.scores),
        **{f"known/{name}": _mean(values) for name, values in samples.known.items()},
        "kl_k1": _mean(samples.kl_k1),
        "kl_k3": _mean(samples.kl_k3),
        "response_tokens": _mean(samples.response_tokens),
        "eos_rate": _mean(samples.ended),
        "distinct_1": distinct_n(samples.responses, 1),
        "distinct_2": distinct_n(samples.responses, 2),
        "repeated_phrases": repeated_phrase_rate(samples.responses),
        "consistency": consistency(samples, reading),
        **_refusals(samples, reading),
        "prompts": float(len(samples)),
    }
    return {f"{samples.name}/{key}": value for key, value in found.items() if value is not None}


def win_rates(samples_by_name: Mapping[str, ModelSamples]) -> dict[str, float]:
    """Win rates of every ordered pair of models by gold total; a tie counts ½.

    The half-width is that of Agresti and Coull's interval: two wins and two losses are added before the variance is
    taken, so that 500 wins out of 500 still have a width. Theirs lies around the rate with those four; here it is given
    for the rate itself, so that of few prompts (4 of 4: 1 − 0.30) the lower end is too high.
    Raises: ValueError if two models were asked different prompts.
    """
    result: dict[str, float] = {}
    judged = {name: s for name, s in samples_by_name.items() if s.gold is not None and len(s)}
    for a, first in judged.items():
        for b, second in judged.items():
            if a == b:
                continue
            outcomes = _outcomes(first, second)
            key = f"{a}/win_rate_vs_{b}"
            result[key] = sum(outcomes) / len(outcomes)
            result[f"{key}_ci95"] = _half_width(outcomes)
            result[f"{key}_n"] = float(len(outcomes))
            result[f"{a}/tie_rate_vs_{b}"] = outcomes.count(0.5) / len(outcomes)
    return result


def consistency(samples: ModelSamples, reading: Reading) -> float | None:
    """Share of prompt–rewording pairs with the same asserted answer; None where there is no such pair.

    A pair in which only one response asserts anything is not the same; one in which neither does is left out.
    """
    if reading.answer_items is None or samples.reworded_responses is None:
        return None
    same: list[bool] = []
    rows = zip(samples.prompts, samples.responses, samples.reworded_responses, strict=True)
    for record, response, reworded in rows:
        if reworded is None:
            continue
        answers = reading.answer_items(record, response), reading.answer_items(record, reworded)
        if answers != (None, None):
            same.append(answers[0] == answers[1])
    return _mean(same)


def require_same_prompts(first: ModelSamples, second: ModelSamples) -> None:
    """Raises: ValueError if two models were asked different prompts."""
    if [r["prompt"] for r in first.prompts] != [r["prompt"] for r in second.prompts]:
        raise ValueError(
            f"{first.name} and {second.name} must answer the same prompts in one order"
        )


def _outcomes(first: ModelSamples, second: ModelSamples) -> list[float]:
    require_same_prompts(first, second)
    assert first.gold is not None
    assert second.gold is not None
    outcomes = []
    for mine, other in zip(first.gold, second.gold, strict=True):
        difference = mine.total - other.total
        outcomes.append(0.5 if abs(difference) < TIE else float(difference > 0))
    return outcomes


def _half_width(outcomes: Sequence[float]) -> float:
    padded = [*outcomes, 1.0, 1.0, 0.0, 0.0]
    mean = sum(padded) / len(padded)
    variance = sum((x - mean) ** 2 for x in padded) / len(padded)
    return Z95 * math.sqrt(variance / len(padded))


def _gold_means(samples: ModelSamples) -> dict[str, float | None]:
    gold = samples.gold
    if gold is None:
        return {}
    parts = [part for part in GOLD_PARTS if all(hasattr(verdict, part) for verdict in gold)]
    return {"gold_score": _mean([verdict.total for verdict in gold])} | {
        part: _mean([getattr(verdict, part) for verdict in gold]) for part in parts
    }


def _refusals(samples: ModelSamples, reading: Reading) -> dict[str, float | None]:
    if reading.is_refusal is None or reading.should_refuse is None:
        return {}
    refused: dict[bool, list[bool]] = {True: [], False: []}
    for record, response in zip(samples.prompts, samples.responses, strict=True):
        should = reading.should_refuse(record)
        if should is not None:
            refused[should].append(reading.is_refusal(record, response))
    return {
        "over_refusal": _mean(refused[False]),
        "missed_refusal": _mean([not x for x in refused[True]]),
    }


def _mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None
