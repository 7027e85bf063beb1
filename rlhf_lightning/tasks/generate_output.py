"""Where generated rows go: a JSON Lines file that is there whole or not at all, or the console."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from rlhf_lightning.data.stored import write_rows
from rlhf_lightning.errors import UserError
from rlhf_lightning.foreign import without_controls
from rlhf_lightning.runs.files import own_directory, temporary_name

Row = dict[str, Any]
OTHER_FORMATS = (".csv", ".gz", ".json", ".parquet", ".zst")
"""Suffixes of what is not written here."""


def require_place(output: str | None, source: str | None, *, overwrite: bool) -> None:
    """Raises: UserError if `output` is named as another format, is a folder or the input, cannot be written, or is
    there and must stay."""
    if output is None:
        return
    path = Path(output)
    if path.suffix in OTHER_FORMATS:
        raise UserError(f"output must be a JSON Lines file (.jsonl), got {output!r}")
    if path.is_dir():
        raise UserError(f"output must be a file, got the folder {output!r}")
    if path.exists() and not path.is_file():
        # a device, a pipe: a rename would put a file in its place
        raise UserError(f"output must be a file, got {output!r} (left out, rows are printed)")
    if source is not None and path.exists() and path.samefile(source):
        raise UserError(f"output must be another file than input, got {output!r}")
    if path.exists() and not overwrite:
        raise UserError(
            f"output must be a new file, got {output!r}, which exists (generate.overwrite=true replaces it)"
        )
    require_writable(path.resolve().parent, "output")


def require_writable(folder: Path, key: str) -> None:
    """Raises: UserError if `folder` is not there and cannot be made, or nothing can be written into it."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(f"{key} must be a place that can be written, got {str(folder)!r}")


def written(path: Path, rows: Iterable[Row], *, overwrite: bool) -> int:
    """Write all rows under a name of this process's own, then rename; what fails leaves nothing. Returns how many.

    Raises: UserError if another file has appeared at `path` and must stay: it names where the rows are.
    """
    path = path.resolve()  # of a link, what it leads to
    own = temporary_name(path)  # two commands may have one output
    with own_directory(path.parent):
        try:
            count = write_rows(own, rows)
            if overwrite:
                os.replace(own, path)
            else:
                _put_where_nothing_is(own, path)
        finally:
            own.unlink(missing_ok=True)
    return count


def _put_where_nothing_is(own: Path, path: Path) -> None:
    try:
        os.link(own, path)  # fails where a file is, in one step
        return
    except OSError:  # or the file system has no hard links
        if not path.exists():
            os.replace(own, path)
            return
    beside = path.with_name(f"{path.stem}-{own.name.split('.')[-2]}{path.suffix}")
    os.replace(own, beside)
    raise UserError(
        f"output must be a new file, got {str(path)!r}, which another command has written meanwhile:"
        f" the rows are in {str(beside)!r}"
    )


def printed(rows: Iterable[Row], *, scored: bool, console: Console | None = None) -> int:
    """Print each prompt once and its responses below it, as they come. Returns how many."""
    console = console or Console(highlight=False)
    last, count = None, 0
    for count, row in enumerate(rows, start=1):  # noqa: B007 (returned)
        if row["index"] != last:
            last = row["index"]
            console.print(Rule(f"prompt {last}", align="left", style="dim"))
            for message in row["prompt"]:
                _line(console, message["role"], message["content"], "dim")
        _line(console, "response", row["response"] or "(nothing)", "bold")
        console.print(Text(_facts(row, scored=scored), style="dim"), soft_wrap=True)
    return count


def _line(console: Console, name: str, text: str, style: str) -> None:
    text = without_controls(text)
    # a Text: brackets in it are no markup; soft_wrap: a line that is piped on stays one line
    console.print(Text.assemble((f"{name:<10}", "cyan"), (text, style)), soft_wrap=True)


def _facts(row: Row, *, scored: bool) -> str:
    end = "" if row["ended"] else ", cut off"
    facts = [f"{row['response_tokens']} tokens{end}", f"logprob {row['logprob']:.2f}"]
    if scored:
        facts.append(f"score {row['score']:.3f}")
    return " " * 10 + " · ".join(facts)
