"""Prompts from a file, row by row: what `task=generate` answers.

.jsonl   {"prompt": [messages]}, {"prompt": "text"} or {"messages": [...]};  .txt: one prompt a line;  each also .gz
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rlhf_lightning.data.formats.own import prompt_messages
from rlhf_lightning.data.records import Record, validate
from rlhf_lightning.errors import UserError

FORMATS = (".jsonl", ".txt")


@dataclass(frozen=True)
class PromptRow:
    """One prompt of a file."""

    index: int
    """0, 1, ...; empty lines have none."""
    where: str
    """file:line"""
    record: Record
    """A prompt record; other keys of the row stay in it."""
    reply_left_out: bool = False
    """The row is a conversation that ends with the assistant's turn, which the prompt does not hold."""


def require_prompt_file(path: Path) -> None:
    """Raises: UserError if there is no file, or of another format."""
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise UserError(f"input must be a file of prompts, got {str(path)!r}, which {what}")
    if _format(path) not in FORMATS:
        raise UserError(
            f"input must be a file of {' or '.join(FORMATS)} (or that with .gz), got {str(path)!r}"
        )


def read_prompts(path: Path) -> Iterator[PromptRow]:
    """The prompts of a file, one in memory at a time.

    Raises: UserError with file:line for a row that is no prompt, or a file that cannot be read.
    """
    opened: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as lines:
            yield from _rows(path, lines)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"{path}: must be a readable {_format(path)} file, got {error}") from None


def prompt_row(record: Any, *, index: int, where: str) -> PromptRow:
    """A row's record as a prompt.

    Raises: UserError if it is none.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where}: must be a JSON object, got {record!r:.60}")
    found = {str(key): value for key, value in record.items()}
    left_out = False
    if "messages" in found and "prompt" not in found:
        messages = found.pop("messages")
        if isinstance(messages, list) and messages and _role(messages[-1]) == "assistant":
            messages, left_out = messages[:-1], True
        found["prompt"] = messages
    prompt = found.get("prompt")
    if isinstance(prompt, str):
        found["prompt"] = prompt_messages(prompt, where)
    if "prompt" not in found:
        raise UserError(f"{where}: must have the key prompt or messages, got {sorted(found)}")
    found.pop("completions", None)  # of a comparison only the prompt is wanted
    return PromptRow(index, where, validate("prompt", found, where=where), left_out)


def _rows(path: Path, lines: IO[str]) -> Iterator[PromptRow]:
    index = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        record = {"prompt": line.rstrip("\r\n")} if _format(path) == ".txt" else _parse(line, where)
        yield prompt_row(record, index=index, where=where)
        index += 1


def _parse(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: must be one JSON object, got {line[:40].strip()!r} ({error})"
        ) from None


def _role(message: object) -> object:
    return message.get("role") if isinstance(message, dict) else None


def _format(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
