"""Public formats and how their rows become records: `FORMATS` is the whole list, in the order of asking."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_type_hints

from rlhf_lightning.data.formats.base import Format, Removed, Row
from rlhf_lightning.data.formats.dialogues import DIALOGUES
from rlhf_lightning.data.formats.instructions import INSTRUCTIONS
from rlhf_lightning.data.formats.own import OWN, OWN_LAST
from rlhf_lightning.data.formats.preferences import PREFERENCES
from rlhf_lightning.data.formats.qa_feedback import QA_FEEDBACK
from rlhf_lightning.errors import UserError

__all__ = ["FORMATS", "Format", "Removed", "format_of", "named", "options_of"]

# what has more keys is asked first: a preference row may carry `messages`, a tree's `prompt` is no prompt
FORMATS: tuple[Format, ...] = (
    *QA_FEEDBACK,
    *PREFERENCES,
    *DIALOGUES,
    *OWN,
    *INSTRUCTIONS,
    *OWN_LAST,
)


def format_of(row: Row, where: str) -> Format:
    """The format of a row.

    Raises: UserError that lists the keys that were seen and the formats that are known.
    """
    if isinstance(row, str):
        return named("strings", where)
    if not isinstance(row, dict):
        raise UserError(f"{where}: must be a JSON object, got {row!r:.60}")
    if {"message_id", "parent_id", "text"} <= row.keys():
        raise UserError(
            f"{where}: must be a whole tree of messages, as OpenAssistant's files *.trees.jsonl.gz have them, got one"
            " message of a tree"
        )
    found = next((known for known in FORMATS if known.detect(row)), None)
    if found is None:
        known = "; ".join(f"{known.name} ({known.keys})" for known in FORMATS)
        raise UserError(
            f"{where}: must be of a known format, got the keys {sorted(map(str, row))}; known are {known}"
        )
    return found


def named(name: str, key: str) -> Format:
    """Raises: UserError if there is no such format."""
    for known in FORMATS:
        if known.name == name:
            return known
    names = ", ".join(sorted(known.name for known in FORMATS))
    raise UserError(f"{key} must be null or one of {names}, got {name!r}")


def options_of(known: Format) -> dict[str, Any]:
    """Option → its type."""
    hints = get_type_hints(known.adapt)
    parameters = inspect.signature(known.adapt).parameters.values()
    return {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}


def check_option(known: Format, option: str, value: object, key: str) -> None:
    """Raises: UserError if the value is not of the option's type."""
    kind = options_of(known)[option]
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        name = getattr(kind, "__name__", str(kind))
        raise UserError(f"{key}.{option} must be {name}, got {value!r}")
    if whole and value < 1:  # type: ignore[operator]
        raise UserError(f"{key}.{option} must be >= 1, got {value!r}")


def options_for(known: Format, args: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Those of `args` that the format takes, checked."""
    own = {name: value for name, value in args.items() if name in options_of(known)}
    for name, value in own.items():
        check_option(known, name, value, key)
    return own
