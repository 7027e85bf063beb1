"""report.html: one page that tells a run to someone who did not start it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.evaluation.page import inline, render_page
from rlhf_lightning.evaluation.samples import GOLD_PARTS, ModelSamples
from rlhf_lightning.evaluation.summary import summary
from rlhf_lightning.runs.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_A_NUMBER = "n/a"


@dataclass
class StageRow:
    """What one stage was."""

    name: str
    """pretrain, sft, reward, ppo, evaluate; with its round where there are several."""
    summary: str
    """What it did, in plain words: `6,000 demonstrations, 1 epoch`."""
    parameters: int | None = None
    examples: int | None = None
    """Documents, demonstrations, comparisons or episodes."""
    tokens: int | None = None
    duration_s: float | None = None


@dataclass
class ReportFigure:
    """A figure, and a caption that says in plain words what to see in it."""

    title: str
    figure: Figure
    caption: str


@dataclass
class Turn:
    """One prompt and what each model said to it."""

    prompt: list[dict[str, str]]
    """Messages."""
    answers: dict[str, dict[str, Any]]
    """Model → {"response", and where known "gold" {"total", of GOLD_PARTS what there is}, "score", "kl_k1"}."""


@dataclass
class ConfigChange:
    """A setting that differs from its default."""

    key: str
    default: Any
    value: Any


@dataclass
class ReportData:
    """All that a page may show; what is absent is left out."""

    title: str
    subtitle: str = ""
    stages: Sequence[StageRow] = ()
    models: Sequence[str] = ("base", "sft", "ppo")
    """Columns of the comparison, from the first to the last stage."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The flat metrics: those of evaluation.metrics, and reward/*, labelers/*, time/*."""
    figures: Sequence[ReportFigure] = ()
    turns: Sequence[Turn] = ()
    changes: Sequence[ConfigChange] | None = None
    """None: not known; empty: all defaults."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Git commit, hashes, versions."""


def write_report(path: Path | str, data: ReportData) -> Path:
    """Write the page, which needs no other file and no network."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render_report(data))
    return path


def render_report(data: ReportData) -> str:
    """The page as text. Everything that comes from data is escaped."""
    figures = [(f.title, inline(f.figure), f.caption) for f in data.figures]
    return render_page(
        "report.html",
        (number, percent, count, duration),
        data=data,
        metrics=dict(data.metrics),
        models=[m for m in data.models if f"{m}/gold_score" in data.metrics],
        wins=_wins(data),
        summary=summary(data.metrics, _measured(data)),
        reward=_reward_rows(data.metrics),
        known=_known_rows(data),
        measured=_measured(data),
        figures=figures,
        table=sorted(data.metrics.items()),
    )


def turns_of(samples: Sequence[ModelSamples], shown: int) -> list[Turn]:
    """The first `shown` prompts with the answers of all models (they must be of the same prompts)."""
    if not samples:
        return []
    return [
        Turn(list(record["prompt"]), {s.name: _answer(s, row) for s in samples})
        for row, record in enumerate(samples[0].prompts[:shown])
    ]


def _answer(samples: ModelSamples, row: int) -> dict[str, Any]:
    answer: dict[str, Any] = {"response": samples.responses[row]}
    if samples.gold is not None:
        gold = samples.gold[row]
        answer["gold"] = {p: getattr(gold, p) for p in ("total", *GOLD_PARTS) if hasattr(gold, p)}
    for name in ("scores", "kl_k1"):
        values = getattr(samples, name)
        if values is not None:
            answer[name.rstrip("s")] = values[row]
    return answer


def _wins(data: ReportData) -> list[dict[str, Any]]:
    """Each later model against each earlier one, the nearest first."""
    rows = []
    for place, winner in reversed(list(enumerate(data.models))):
        for loser in reversed(data.models[:place]):
            key = f"{winner}/win_rate_vs_{loser}"
            if key in data.metrics:
                get = data.metrics.get
                rows.append(
                    {
                        "winner": winner,
                        "loser": loser,
                        "rate": data.metrics[key],
                        "ci": get(f"{key}_ci95"),
                    }
                    | {"n": get(f"{key}_n"), "ties": get(f"{winner}/tie_rate_vs_{loser}")}
                )
    return rows


def _known_rows(data: ReportData) -> list[tuple[str, list[dict[str, float | None]]]]:
    """Known score → mean, gain and p-value of each model; gain and p are against evaluate.reference."""
    prefixes = [f"{model}/known/" for model in _measured(data)]
    found = {k[len(p) :] for p in prefixes for k in data.metrics if k.startswith(p)}
    against = re.compile(f"_(gain|p)_vs_({'|'.join(map(re.escape, data.models))})$")
    scores = sorted(name for name in found if not against.search(name))
    return [(score, [_known_cell(data, f"{p}{score}") for p in prefixes]) for score in scores]


def _measured(data: ReportData) -> list[str]:
    return [model for model in data.models if f"{model}/prompts" in data.metrics]


def _known_cell(data: ReportData, key: str) -> dict[str, float | None]:
    def against_reference(what: str) -> float | None:
        names = (name for name in data.metrics if name.startswith(f"{key}_{what}_vs_"))
        return next((data.metrics[name] for name in names), None)

    return {
        "mean": data.metrics.get(key),
        "gain": against_reference("gain"),
        "p": against_reference("p"),
    }


REWARD_ROWS = {
    "reward/pairwise_accuracy": "Agrees with the labelers on held-out pairs",
    "labelers/agreement": "Two labelers agree with each other",
    "reward/gold_accuracy": "Agrees with the gold order on held-out pairs of both splits (gold ties left out)",
    "reward/length_baseline_accuracy": "“The longer one wins”, on the pairs of the first row",
}


def _reward_rows(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    return [(text, metrics[key]) for key, text in REWARD_ROWS.items() if key in metrics]


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits; scientific where these would hide a small number or make a huge one unreadable."""
    if value is None or not math.isfinite(value):
        return NOT_A_NUMBER
    if value == int(value) and 10 <= abs(value) < 1e6:
        return f"{value:,.0f}".replace("-", "−")
    tiny = digits >= 3 and 0 < abs(value) < 10**-digits
    text = f"{value:.2e}" if tiny or abs(value) >= 1e6 else f"{value:.{digits}f}"
    return text.replace("-", "−")


def percent(value: float | None, digits: int = 1) -> str:
    return (
        NOT_A_NUMBER if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f} %"
    )


def count(value: float | None) -> str:
    """10,400 or 1.3 M."""
    if value is None:
        return ""
    return f"{value / 1e6:,.1f} M" if abs(value) >= 1e6 else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """48 s, 3 min 05 s, 2 h 10 min."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
