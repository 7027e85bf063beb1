"""Two answers of which one was preferred: prompt/chosen/rejected, and the transcripts of HH-RLHF."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lightning.data.formats.base import (
    Adapted,
    Format,
    Removed,
    Row,
    field,
    messages_of,
    with_system,
)
from rlhf_lightning.data.formats.transcripts import answered, is_transcript, transcript
from rlhf_lightning.data.records import Message
from rlhf_lightning.errors import UserError


@with_system
def _preference(row: Row, where: str) -> Adapted:
    """`chosen` and `rejected` are answers, or whole conversations whose common beginning is the prompt.

    Beside whole conversations `prompt` must be a part of them: it says nothing that they do not.
    """
    if isinstance(row, dict) and is_transcript(row.get("prompt")):  # HH-RLHF in three columns
        prompt = row["prompt"]
        yield from _compared(
            *(
                answered(prompt, field(row, key, where), f"{where}: {key}")
                for key in ("chosen", "rejected")
            )
        )
        return
    chosen = messages_of(field(row, "chosen", where), "assistant", f"{where}: chosen")
    rejected = messages_of(field(row, "rejected", where), "assistant", f"{where}: rejected")
    prompt = messages_of(row.get("prompt") or "", "user", f"{where}: prompt")
    if not _asks(chosen) and not _asks(rejected):
        chosen, rejected = [*prompt, *chosen], [*prompt, *rejected]
    elif not all(_holds(conversation, prompt) for conversation in (chosen, rejected)):
        yield Removed("another_prompt")
        return
    if not prompt and not any(m["role"] == "user" for m in (*chosen, *rejected)):
        raise UserError(
            f"{where}: chosen and rejected must be messages that begin alike where there is no prompt, "
            f"got {row.get('chosen')!r:.40}"
        )
    yield from _compared(chosen, rejected)


def _asks(messages: Sequence[Message]) -> bool:
    """Whether it is a whole conversation, and no answer."""
    return any(message["role"] != "assistant" for message in messages)


def _holds(conversation: Sequence[Message], prompt: Sequence[Message]) -> bool:
    """Whether the messages follow each other in it, but for white space around them."""
    said, asked = (
        [(m["role"], m["content"].strip()) for m in messages] for messages in (conversation, prompt)
    )
    return any(said[i : i + len(asked)] == asked for i in range(len(said) - len(asked) + 1))


def _hh(row: Row, where: str) -> Adapted:
    yield from _compared(
        transcript(field(row, "chosen", where), f"{where}: chosen"),
        transcript(field(row, "rejected", where), f"{where}: rejected"),
    )


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
    else:
        answers = [end[0]["content"] if end else "" for end in ends]
        if answers[0].strip():
            yield "comparison", {"prompt": prompt, "completions": answers, "ranks": [0, 1]}
        else:  # an answer of no words at all may well have lost; what has won is a cell that nobody filled in
            yield Removed("empty")


PREFERENCES = (
    Format(
        "hh",
        "chosen and rejected, transcripts of Human: and Assistant: turns",
        lambda r: not r.get("prompt") and is_transcript(r.get("chosen")),
        _hh,
    ),
    Format(
        "preference",
        "chosen, rejected, also prompt",
        lambda r: {"chosen", "rejected"} <= r.keys(),
        _preference,
    ),
)
