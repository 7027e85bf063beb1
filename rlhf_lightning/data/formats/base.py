"""What a format is, and what adapters share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

from rlhf_lightning.data.records import Message, Record
from rlhf_lightning.errors import UserError

Row = Any
"""What one line of JSON holds: nearly always a dict."""


@dataclass(frozen=True)
class Removed:
    """A part of a row that gives no record, for a reason that is normal in public data."""

    reason: str


Adapted = Iterator[tuple[str, Record] | Removed]
"""(kind, record) of everything that a row holds, in an order that never changes."""


@dataclass(frozen=True)
class Format:
    """A way in which people write down demonstrations, comparisons, prompts or text."""

    name: str
    keys: str
    """How its rows are known, for people."""
    detect: Callable[[dict[str, Any]], bool]
    adapt: Callable[..., Adapted]
    """(row, where, **options); its keyword-only parameters are the options that `args` may set."""
    native: bool = False
    """Whether a row is a record as it stands."""


def text_of(value: object, where: str) -> str:
    """Raises: UserError if it is no text."""
    if not isinstance(value, str):
        raise UserError(f"{where} must be text, got {value!r:.60}")
    return value.strip()


def field(row: dict[str, Any], key: str, where: str) -> Any:
    """Raises: UserError if the row lacks the key."""
    if not isinstance(row, dict) or key not in row:
        got = sorted(map(str, row)) if isinstance(row, dict) else repr(row)[:60]
        raise UserError(f"{where}: must have {key!r} like the rows before it, got {got}")
    return row[key]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def messages_of(value: object, role: str, where: str) -> list[Message]:
    """A text as one message of `role`, or messages as they are. An empty text gives none.

    Raises: UserError if it is neither.
    """
    if isinstance(value, str):
        return [turn(role, value.strip())] if value.strip() else []
    if not isinstance(value, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in value
    ):
        raise UserError(f"{where} must be text or a list of messages, got {value!r:.60}")
    return without_empty_system([turn(m["role"], m["content"]) for m in value])


def without_empty_system(messages: Sequence[Message]) -> list[Message]:
    """The messages but for system messages of no words, which public data are full of."""
    return [m for m in messages if m["role"] != "system" or m["content"].strip()]


def with_system(adapt: Callable[..., Adapted]) -> Callable[..., Adapted]:
    """An adapter of rows that may say in a column `system` what stands before the conversation.

    Raises: UserError, as the adapter is used, if the conversation begins with another system message.
    """

    @wraps(adapt)
    def adapted(row: Row, where: str, **options: Any) -> Adapted:
        given = row.get("system") if isinstance(row, dict) else None
        said = "" if given is None else text_of(given, f"{where}: system")
        for item in adapt(row, where, **options):
            if not said or isinstance(item, Removed):
                yield item
            else:
                yield item[0], _after_system(item[1], said, where)

    return adapted


def _after_system(record: Record, said: str, where: str) -> Record:
    key = "messages" if "messages" in record else "prompt"
    first = record[key][0]
    if first["role"] != "system":
        return {**record, key: [turn("system", said), *record[key]]}
    if first["content"].strip() != said:
        raise UserError(
            f"{where}: system must be what the conversation begins with, got {said!r:.60}"
        )
    return record


def with_meta(record: Record, meta: dict[str, Any]) -> Record:
    """The record with a `meta`, if there is anything to say."""
    return {**record, "meta": meta} if meta else record
