"""The figures of reports and of TensorBoard, as matplotlib Figures without pyplot's global state.

Colours are Okabe and Ito's, which colour-blind readers tell apart; lines are labelled where they end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_lightning.evaluation.style import BLUE, COLOURS, INK, MUTED, VERMILLION, axes, new_figure
from rlhf_lightning.runs.curves import Curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Panel:
    """One small plot: its title and its lines, label → metric."""

    title: str
    lines: Mapping[str, str]


PANELS: dict[str, tuple[Panel, ...]] = {
    "pretrain": (
        Panel("Loss, nats per token", {"training": "train/loss", "held out": "val/loss"}),
    ),
    "sft": (Panel("Loss, nats per token", {"training": "train/loss", "held out": "val/loss"}),),
    "reward": (
        Panel("Loss", {"training": "train/loss", "held out": "val/loss"}),
        Panel("Held-out accuracy", {"labelers": "val/pairwise_accuracy"}),
    ),
    "ppo": (
        Panel("Reward-model score", {"rollouts": "rollout/score", "held out": "val/score"}),
        Panel("Gold score", {"held out": "val/gold_score"}),
        Panel(
            "KL to the reference (k1), nats", {"rollouts": "rollout/kl_k1", "held out": "val/kl_k1"}
        ),
        Panel("Response length, tokens", {"rollouts": "rollout/response_tokens"}),
    ),
}
"""What is drawn for each stage; a metric's name also matches after a stage prefix (`sft/train/loss`)."""


def learning_curves(
    curves: Curves, panels: Sequence[Panel], x_label: str = "step"
) -> Figure | None:
    """Small plots side by side, two in a row; panels without data are left out, None if all are."""
    drawn = [(panel, found) for panel in panels if (found := _found(curves, panel))]
    if not drawn:
        return None
    columns = min(2, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    figure = new_figure(9.6, 2.7 * rows)
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.08)  # type: ignore[union-attr]
    for place, (panel, found) in enumerate(drawn):
        ax = axes(figure, rows, columns, place + 1)
        for colour, (label, points) in zip(COLOURS, found.items(), strict=False):
            x, y = zip(*points, strict=True)
            ax.plot(x, y, color=colour, label=label)
        ax.set_title(panel.title, loc="left", fontsize=10, color=INK)
        ax.set_xlabel(x_label)
        _label_ends(ax, len(found))
    return figure


def score_over_kl(
    curves: Curves,
    *,
    kl: str = "val/kl_k1",
    score: str = "val/score",
    gold: str = "val/gold_score",
) -> Figure | None:
    """Reward-model score (left) and gold score (right) against KL over a run; None without data."""
    points = _joined(curves, kl, score, gold)
    if not points:
        return None
    figure = new_figure(9.6, 3.8)
    left = axes(figure, 1, 1, 1)
    right = left.twinx()
    x = [p[0] for p in points]
    for ax, column, colour, name in (
        (left, 1, BLUE, "score of the reward model"),
        (right, 2, VERMILLION, "gold score"),
    ):
        y = [p[column] for p in points]
        ax.plot(x, y, color=colour, marker="o", markersize=4)
        ax.set_title(name, loc="left" if ax is left else "right", color=colour, fontsize=10)
        ax.tick_params(axis="y", labelcolor=colour, labelsize=9, length=0)
        ax.spines[["top", "left", "right"]].set_visible(False)
    right.spines["bottom"].set_visible(False)
    left.set_xlabel("KL to the reference (k1, nats)")
    return figure


def win_rate_bars(metrics: Mapping[str, float], pairs: Sequence[tuple[str, str]]) -> Figure | None:
    """Win rate of A over B with its 95 % interval, one bar a pair (A, B); None if no pair is in `metrics`."""
    known = [(a, b) for a, b in pairs if f"{a}/win_rate_vs_{b}" in metrics]
    if not known:
        return None
    figure = new_figure(9.6, 0.75 + 0.55 * len(known))
    ax = axes(figure, 1, 1, 1)
    for row, (a, b) in enumerate(known):
        key = f"{a}/win_rate_vs_{b}"
        rate, half = metrics[key], metrics.get(f"{key}_ci95", 0.0)
        ax.barh(row, rate, height=0.56, color=BLUE, alpha=0.85)
        low, high = max(rate - half, 0.0), min(rate + half, 1.0)
        ax.plot([low, high], [row, row], color=INK, linewidth=1.6, solid_capstyle="butt")
        ties = metrics.get(f"{a}/tie_rate_vs_{b}")
        note = f"{100 * rate:.1f} ± {100 * half:.1f} %" + (
            f" · {ties:.0%} ties" if ties is not None else ""
        )
        ax.text(1.02, row, note, va="center", color=INK, fontsize=10)
    ax.axvline(0.5, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    ax.set_yticks(range(len(known)), [f"{a} against {b}" for a, b in known], color=INK)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "even", "75 %", "100 %"])
    ax.set_xlim(0, 1.3)
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.spines["left"].set_visible(False)
    ax.spines["bottom"].set_bounds(0, 1)
    return figure


SHOWN_TOKENS = 128
"""Tokens of a heat strip: a figure of 48 inches."""


def heat_strip(tokens: Sequence[str], rows: Mapping[str, Sequence[float]]) -> Figure:
    """Numbers of each response token as colours: one strip a quantity, zero is white, the tokens below.

    Of a longer response the first SHOWN_TOKENS are drawn, and a mark for the others.

    Raises: ValueError if a row's length is not that of the tokens.
    """
    for name, values in rows.items():
        if len(values) != len(tokens):
            raise ValueError(f"{name} must have {len(tokens)} numbers, got {len(values)}")
    if len(tokens) > SHOWN_TOKENS:
        left_out = f"... {len(tokens) - SHOWN_TOKENS} more"
        tokens = [*tokens[:SHOWN_TOKENS], left_out]
        rows = {name: [*values[:SHOWN_TOKENS], 0.0] for name, values in rows.items()}
    labels = [_shown(token) for token in tokens]
    left, below = 1.35, 0.15 + 0.075 * max((len(label) for label in labels), default=0)  # inches
    width, height = left + 0.36 * max(len(tokens), 6), below + 0.4 * len(rows)
    figure = new_figure(
        width, height, layout=None
    )  # laid out by hand: a validation draws many of these
    for place, (name, values) in enumerate(rows.items()):
        bottom = below + 0.4 * (len(rows) - 1 - place)
        ax = figure.add_axes(
            (left / width, bottom / height, 1 - (left + 0.05) / width, 0.34 / height)
        )
        limit = max((abs(v) for v in values), default=0.0) or 1.0
        ax.imshow([list(values)], aspect="auto", cmap="PuOr_r", vmin=-limit, vmax=limit)
        ax.set_yticks([0], [f"{name} ±{limit:.2g}"], color=INK, fontsize=9)
        ax.set_xticks([])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        if place == len(rows) - 1:
            ax.set_xticks(range(len(tokens)), labels, rotation=90, color=INK, fontsize=9)
    return figure


def _found(curves: Curves, panel: Panel) -> dict[str, list[tuple[int, float]]]:
    found = {}
    for label, key in panel.lines.items():
        points = _curve(curves, key)
        if points:
            found[label] = points
    return found


def _curve(curves: Curves, key: str) -> list[tuple[int, float]]:
    matches = [name for name in curves if name == key or name.endswith(f"/{key}")]
    points = curves[min(matches, key=len)] if matches else []
    return [(step, value) for step, value in points if math.isfinite(value)]


def _joined(curves: Curves, *keys: str) -> list[tuple[float, ...]]:
    """Values of several metrics at the steps where all of them were logged, in order of steps."""
    columns = [dict(_curve(curves, key)) for key in keys]
    steps = sorted(set.intersection(*(set(column) for column in columns)))
    return [tuple(column[step] for column in columns) for step in steps]


def _label_ends(ax: Axes, lines: int) -> None:
    """Name each line at its right end, moved apart where two would overlap."""
    if lines < 2:
        return
    low, high = ax.get_ylim()
    gap = 0.09 * (high - low)
    last = -math.inf
    for line in sorted(ax.get_lines(), key=lambda item: _end(item)[1]):
        x, y = _end(line)
        last = max(y, last + gap)
        ax.annotate(
            str(line.get_label()),
            (x, last),
            xytext=(6, 0),
            textcoords="offset points",
            color=line.get_color(),
            va="center",
            fontsize=9,
            annotation_clip=False,
        )


def _end(line: Any) -> tuple[float, float]:
    return float(line.get_xdata()[-1]), float(line.get_ydata()[-1])


def _shown(token: str) -> str:
    # a byte of a torn character has no glyph
    visible = "".join(c if c.isprintable() or c == "\n" else "·" for c in token)
    return visible.replace("\n", "⏎").replace("$", r"\$").strip() or "␣"
