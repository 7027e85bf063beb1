"""How figures look, and how they get into a page."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN, ORANGE = "#0072b2", "#d55e00", "#009e73", "#e69f00"
COLOURS = (BLUE, VERMILLION, GREEN, ORANGE)
INK, MUTED, GRID = "#22262b", "#767c85", "#e3e6ea"

PAGE_COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    BLUE: "var(--blue)",
    VERMILLION: "var(--vermillion)",
    GREEN: "var(--green)",
    ORANGE: "var(--orange)",
}
"""In a page, a figure takes its colours from the page, which has a light and a dark set."""


def new_figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    """An empty figure of that size in inches; it belongs to no window and to no global list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]
    FigureCanvasAgg(figure)
    return figure


def axes(figure: Figure, rows: int, columns: int, place: int) -> Axes:
    """A plot with a light grid behind it and without a frame above and to the right."""
    ax = figure.add_subplot(rows, columns, place)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(MUTED)
    ax.tick_params(colors=MUTED, labelsize=9, length=3)
    ax.xaxis.label.set_color(MUTED)
    ax.xaxis.label.set_fontsize(9)
    ax.grid(axis="y", color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    return ax


def figure_to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` to stand inside a page: transparent, text as text, the page's colours."""
    import matplotlib as mpl
    from matplotlib.text import Text

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "rlhf"}
    buffer = io.StringIO()
    for text in figure.findobj(Text):  # a name with two $ is no formula
        text.set_parse_math(False)
    with mpl.rc_context(settings):
        # no date, and ids from a fixed salt: the same numbers give the same file
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%" role="img"', text, count=1)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 var(--sans)", text)
    for colour, variable in PAGE_COLOURS.items():
        text = text.replace(colour, variable)
    return text
