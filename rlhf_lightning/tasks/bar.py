"""How far a task without a Trainer is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINES = 10
"""Plain lines where stdout is not a terminal."""
QUIET_S = 2.0
"""Shorter work prints no plain line."""


@contextmanager
def bar(name: str, total: int, console: Console | None = None) -> Iterator[Callable[[int], None]]:
    """A rich bar on a terminal, elsewhere a plain line every tenth; yields what to call with each number done."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        yield _lines(name, total, console)
        return
    columns = (TextColumn("[bold]{task.description}"), BarColumn(bar_width=24))
    with Progress(
        *columns, MofNCompleteColumn(), TimeRemainingColumn(), console=console, transient=True
    ) as progress:
        task = progress.add_task(name, total=total)
        yield lambda done: progress.advance(task, done)


def _lines(name: str, total: int, console: Console) -> Callable[[int], None]:
    done, tenth, started = 0, 0, time.monotonic()

    def advance(more: int) -> None:
        nonlocal done, tenth
        done += more
        seconds = time.monotonic() - started
        if total and LINES * done // total > tenth and seconds > QUIET_S:
            tenth = LINES * done // total
            line = f"{name:<8} {done:>{len(str(total))}}/{total}  {seconds:4.0f} s"
            console.print(line, soft_wrap=True, markup=False)

    return advance
