"""Tables and figures for whatever logger can show them, without a word of any logger's package but Lightning's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]


def show_table(
    loggers: Iterable[Any], key: str, columns: Sequence[str], rows: Sequence[Row], step: int
) -> None:
    """Rows as a table: `experiment.add_text` (TensorBoard) gets Markdown, `log_table` (Weights & Biases) the cells."""
    names = [name for name in columns if any(name in row for row in rows)]
    for logger in loggers:
        writer: Any = getattr(logger, "experiment", None)
        if hasattr(writer, "add_text"):
            writer.add_text(key, markdown_table(rows, names), step)
        elif hasattr(logger, "log_table"):
            cells = [[row.get(name) for name in names] for row in rows]
            logger.log_table(key, columns=names, data=cells, step=step)


def show_figure(loggers: Iterable[Any], key: str, figure: Figure, step: int) -> None:
    """A matplotlib figure: `experiment.add_figure` (TensorBoard) or `log_image` (Weights & Biases)."""
    for logger in loggers:
        writer: Any = getattr(logger, "experiment", None)
        if hasattr(writer, "add_figure"):
            # close=False: the figure is not one of pyplot's
            writer.add_figure(key, figure, step, close=False)
        elif hasattr(logger, "log_image"):
            logger.log_image(key, images=[figure], step=step)


def shows_figures(logger: Any) -> bool:
    """Whether drawing for it is worth the time."""
    return hasattr(logger, "log_image") or hasattr(
        getattr(logger, "experiment", None), "add_figure"
    )


def markdown_table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(name)) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    # every sign as a number: none is markup, parts a cell or fetches a picture
    lines = (
        re.sub(r"[^\w ]|_", lambda m: f"&#{ord(m[0])};", line) for line in str(value).splitlines()
    )
    return "<br>".join(lines)
