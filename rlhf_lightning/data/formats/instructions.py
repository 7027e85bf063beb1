"""Instructions with their answers: prompt/completion, Alpaca, Self-Instruct, SciTLDR."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.data.formats.base import (
    Adapted,
    Format,
    Removed,
    Row,
    field,
    messages_of,
    text_of,
    turn,
    with_meta,
    with_system,
)
from rlhf_lightning.data.formats.transcripts import answered, is_transcript
from rlhf_lightning.data.records import Message
from rlhf_lightning.errors import UserError

_NO_INPUT = ("", "<noinput>")
"""What Self-Instruct and Alpaca write for an instruction without input."""
_GOOD_OR_BAD = ("true", "false", "0", "1")
"""Labels of unpaired preferences, in JSON or in a table."""


@with_system
def _prompt_completion(row: Row, where: str, *, strip_end: str = "<|endoftext|>") -> Adapted:
    """Options: `strip_end`, a mark that is taken off the end of a completion."""
    prompt = field(row, "prompt", where)
    if str(row.get("label")).casefold() in _GOOD_OR_BAD:
        raise UserError(
            f"{where}: a demonstration must not have a label, good or bad, got label {row['label']!r}"
        )
    value = field(row, "completion", where)
    if isinstance(value, str) and strip_end:
        value = value.rstrip().removesuffix(strip_end)
    if is_transcript(prompt) and isinstance(value, str):
        messages = answered(prompt, value, f"{where}: completion")
    else:
        asked = messages_of(prompt, "user", f"{where}: prompt")
        answer = messages_of(value, "assistant", f"{where}: completion")
        messages = [*asked, *answer] if asked and answer else []
    if not messages or not all(message["content"].strip() for message in messages):
        yield Removed("empty")
        return
    yield "demonstration", {"messages": messages}


@with_system
def _alpaca(row: Row, where: str) -> Adapted:
    """`history`: earlier instructions with their outputs."""
    found = _answered(
        field(row, "instruction", where), row.get("input"), field(row, "output", where), where
    )
    before = _history(row.get("history"), where)
    if isinstance(found, Removed):
        yield found
    else:
        yield found[0], {"messages": [*before, *found[1]["messages"]]}


def _history(value: object, where: str) -> list[Message]:
    pairs = value or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in pairs
    ):
        raise UserError(
            f"{where}: history must be a list of [instruction, output], got {value!r:.60}"
        )
    return [
        turn(role, text_of(text, f"{where}: history[{i}]"))
        for i, pair in enumerate(pairs)
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _self_instruct(row: Row, where: str) -> Adapted:
    instruction, instances = field(row, "instruction", where), field(row, "instances", where)
    if not isinstance(instances, list):
        raise UserError(f"{where}: instances must be a list, got {instances!r:.60}")
    for number, instance in enumerate(instances):
        place = f"{where}: instances[{number}]"
        yield _answered(instruction, instance.get("input"), field(instance, "output", place), place)


def _answered(
    instruction: object, given: object, output: object, where: str
) -> tuple[str, dict[str, Any]] | Removed:
    asked, answer = (
        text_of(instruction, f"{where}: instruction"),
        text_of(output, f"{where}: output"),
    )
    more = "" if given is None else text_of(given, f"{where}: input")
    if not asked or not answer:
        return Removed("empty")
    if more.casefold() not in _NO_INPUT:
        asked = f"{asked}\n\n{more}"
    return "demonstration", {"messages": [turn("user", asked), turn("assistant", answer)]}


def _scitldr(
    row: Row, where: str, *, instruction: str = "Summarize this paper in one sentence."
) -> Adapted:
    """The first target is the answer (its authors wrote it); all of them are meta.references.

    Options: `instruction`, what is asked above the source.
    """
    source = _sentences(field(row, "source", where), f"{where}: source")
    targets = _sentences(field(row, "target", where), f"{where}: target")
    if not source or not targets:
        yield Removed("empty")
        return
    asked = turn("user", f"{instruction}\n\n{' '.join(source)}".strip())
    record = {"messages": [asked, turn("assistant", targets[0])]}
    yield "demonstration", with_meta(record, {"references": targets})


def _sentences(value: object, where: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in (text_of(v, where) for v in values) if text]


INSTRUCTIONS = (
    Format(
        "self_instruct",
        "instruction, instances",
        lambda r: {"instruction", "instances"} <= r.keys(),
        _self_instruct,
    ),
    Format(
        "alpaca",
        "instruction, output, also input",
        lambda r: {"instruction", "output"} <= r.keys(),
        _alpaca,
    ),
    Format("scitldr", "source, target", lambda r: {"source", "target"} <= r.keys(), _scitldr),
    Format(
        "prompt_completion",
        "prompt, completion",
        lambda r: {"prompt", "completion"} <= r.keys(),
        _prompt_completion,
    ),
)
