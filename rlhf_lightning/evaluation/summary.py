"""The few numbers that people ask of each model first: in the report's first table, and as the console's last lines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

COLUMNS = {
    "score": r"reward_score",
    "gain, sd": r"reward_gain_in_.+_sd",
    "gold": r"gold_score",
    "KL": r"kl_k1",
    "ended": r"eos_rate",
    "tokens": r"response_tokens",
    "distinct-2": r"distinct_2",
}
"""Title → the metric's name behind the model's."""


def summary(
    metrics: Mapping[str, float], models: Sequence[str]
) -> tuple[list[str], list[tuple[str, list[float | None]]]]:
    """Titles, and (model, value under each title or None); a column that no model has is left out.

    The mean score, what it gained over the reference in standard deviations of the reference's scores, the mean gold
    score, KL to the reference in nats a response, the share of responses that ended by themselves, tokens a response,
    and the share of different word pairs.
    """
    found = {
        title: [_of(metrics, model, pattern) for model in models]
        for title, pattern in COLUMNS.items()
    }
    titles = [title for title, values in found.items() if any(v is not None for v in values)]
    rows = [(model, [found[t][i] for t in titles]) for i, model in enumerate(models)]
    return titles, rows


def _of(metrics: Mapping[str, float], model: str, pattern: str) -> float | None:
    key = re.compile(f"{re.escape(model)}/{pattern}")
    return next((value for name, value in metrics.items() if key.fullmatch(name)), None)


def summary_lines(metrics: Mapping[str, float], models: Sequence[str]) -> list[str]:
    """The table as lines of equal columns."""
    titles, rows = summary(metrics, models)
    width = max((len(model) for model in models), default=0)
    lines = [" ".join([" " * width, *(f"{title:>10}" for title in titles)])]
    for model, values in rows:
        cells = (f"{'' if value is None else f'{value:.3g}':>10}" for value in values)
        lines.append(" ".join([f"{model:<{width}}", *cells]).rstrip())
    return lines
