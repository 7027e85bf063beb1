"""Two answers of which one was preferred: prompt/chosen/rejected, and the transcripts of HH-RLHF."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlhf_lightning.data.formats.base import Adapted, Format, Removed, Row, field, messages_of, turn
from rlhf_lightning.data.records import Message
from rlhf_lightning.errors import UserError

_TURNS = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def _preference(row: Row, where: str) -> Adapted:
    """`chosen` and `rejected` are answers, or whole conversations whose common beginning is the prompt."""
    if isinstance(row, dict) and _is_transcript(
        row.get("prompt")
    ):  # HH-RLHF, the prompt in a column of its own
        ends = {
            key: _after(row["prompt"], field(row, key, where)) for key in ("chosen", "rejected")
        }
        yield from _compared(*(_transcript(ends[key], f"{where}: {key}") for key in ends))
        return
    chosen = messages_of(field(row, "chosen", where), "assistant", f"{where}: chosen")
    rejected = messages_of(field(row, "rejected", where), "assistant", f"{where}: rejected")
    prompt = messages_of(row.get("prompt") or "", "user", f"{where}: prompt")
    if chosen[: len(prompt)] != prompt or rejected[: len(prompt)] != prompt:
        chosen, rejected = [*prompt, *chosen], [*prompt, *rejected]
    if not prompt and not any(m["role"] == "user" for m in (*chosen, *rejected)):
        raise UserError(
            f"{where}: chosen and rejected must be messages that begin alike where there is no prompt, "
            f"got {row.get('chosen')!r:.40}"
        )
    yield from _compared(chosen, rejected)


def _hh(row: Row, where: str) -> Adapted:
    yield from _compared(
        _transcript(field(row, "chosen", where), f"{where}: chosen"),
        _transcript(field(row, "rejected", where), f"{where}: rejected"),
    )


def _transcript(value: object, where: str) -> list[Message]:
    if not isinstance(value, str) or not _TURNS.match(value):
        raise UserError(f"{where} must be a transcript of Human: and Assistant: turns, got no such")
    _, *parts = _TURNS.split(value)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [turn(_ROLES[speaker], said.strip()) for speaker, said in pairs]


def _after(prompt: str, answer: object) -> object:
    """The whole transcript, which `answer` may be already."""
    return answer if _is_transcript(answer) or not isinstance(answer, str) else prompt + answer


def _compared(chosen: Sequence[Message], rejected: Sequence[Message]) -> Adapted:
    """A comparison of two conversations that are alike but for the last turn."""
    if chosen == rejected:
        yield Removed("identical")
        return
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    prompt, ends = list(chosen[:same]), (chosen[same:], rejected[same:])
    if any(len(end) > 1 or (end and end[0]["role"] != "assistant") for end in ends):
        yield Removed("differs_before_the_last_turn")
    elif not prompt or not any(m["role"] == "user" for m in prompt):
        yield Removed("no_prompt")
    elif prompt[-1]["role"] == "assistant" or not all(m["content"].strip() for m in prompt):
        yield Removed("empty")
    else:  # an answer of no words at all may well have lost
        answers = [end[0]["content"] if end else "" for end in ends]
        yield "comparison", {"prompt": prompt, "completions": answers, "ranks": [0, 1]}


def _is_transcript(value: object) -> bool:
    return isinstance(value, str) and _TURNS.match(value) is not None


PREFERENCES = (
    Format(
        "hh",
        "chosen and rejected, transcripts of Human: and Assistant: turns",
        lambda r: "prompt" not in r and _is_transcript(r.get("chosen")),
        _hh,
    ),
    Format(
        "preference",
        "chosen, rejected, also prompt",
        lambda r: {"chosen", "rejected"} <= r.keys(),
        _preference,
    ),
)
