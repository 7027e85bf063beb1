"""The project's own records, and lists of bare strings.

A prompt may also be a bare text: a transcript, or one user message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf_lightning.data.formats.base import Adapted, Format, Removed, Row, turn
from rlhf_lightning.data.formats.transcripts import asked, is_transcript
from rlhf_lightning.data.records import Message, detect_kind, validate
from rlhf_lightning.data.sentences import chunks, cut_to
from rlhf_lightning.errors import UserError

_MORE = {
    "demonstration": {"completions", "ranks", "pairs"},
    "comparison": {"messages"},
    "prompt": {"messages", "completion", "completions", "chosen", "rejected"},
}
"""Kind → keys of other kinds, which would be lost without a word."""


def _native(kind: str) -> Callable[[Row, str], Adapted]:
    def adapt(row: Row, where: str) -> Adapted:
        if isinstance(row, dict) and (more := sorted(_MORE[kind] & row.keys())):
            raise UserError(
                f"{where}: a {kind} must not have {more[0]!r} (the file's first row showed a {kind}; another format is"
                " named in mix.sources.NAME.format, and a kind is left out by mix.sources.NAME.kinds)"
            )
        if isinstance(row, dict) and isinstance(row.get("prompt"), str):
            row = {**row, "prompt": prompt_messages(row["prompt"], where)}
            if not all(message["content"].strip() for message in row["prompt"]):
                yield Removed("empty")
                return
        yield kind, _record(kind, row, where)

    return adapt


def prompt_messages(text: str, where: str) -> list[Message]:
    """The turns of a transcript that ends where the assistant is to speak; else one message."""
    messages = asked(text, where) if is_transcript(text) else []
    return messages if messages and messages[-1]["role"] == "user" else [turn("user", text)]


def _messages(row: Row, where: str) -> Adapted:
    """A conversation up to its last answer; without one it is a prompt."""
    messages = row.get("messages") if isinstance(row, dict) else None
    if isinstance(messages, list) and all(isinstance(m, dict) for m in messages):
        said = [m for m in messages if m.get("role") != "system" or str(m.get("content")).strip()]
        if not said or any(not str(m.get("content", "?")).strip() for m in said):
            yield Removed("empty")
            return
        roles = [m.get("role") for m in said]
        if "assistant" not in roles:
            rest = {key: value for key, value in row.items() if key != "messages"}
            yield from _request({**rest, "prompt": said}, where)
            return
        if roles[-1] != "assistant":
            yield Removed("turn_after_the_last_answer")
            said = said[: len(roles) - roles[::-1].index("assistant")]
        row = {**row, "messages": said}
    yield from _demonstration(row, where)


_demonstration, _request = _native("demonstration"), _native("prompt")


def _text(row: Row, where: str, *, chunk_chars: int | None = None) -> Adapted:
    """Options: `chunk_chars`, about the longest record; null keeps a row whole."""
    if isinstance(row, dict):
        if isinstance(row.get("text"), str) and not row["text"].strip():
            yield Removed("empty")
            return
        if not isinstance(row.get("meta", {}), dict):  # a column of their own
            row = {key: value for key, value in row.items() if key != "meta"}
    record = _record("text", row, where)
    if chunk_chars is None or len(record["text"]) <= chunk_chars:
        yield "text", record
        return
    for piece in chunks(record["text"].splitlines(), chunk_chars):
        yield "text", {**record, "text": piece}


def _continuation(
    row: Row,
    where: str,
    *,
    instruction: str = "Continue this story.",
    prompt_chars: int = 240,
    response_chars: int = 120,
    chunk_chars: int | None = None,
) -> Adapted:
    """A text's first sentences as the request to go on, the next ones as the answer.

    Options: `instruction`, `prompt_chars` and `response_chars` of whole sentences; `chunk_chars` as of text.
    """
    for piece in _text(row, where, chunk_chars=chunk_chars):
        if isinstance(piece, Removed):
            yield piece
            continue
        text = " ".join(piece[1]["text"].split())
        begun = cut_to(text, lambda part: len(part) <= prompt_chars)
        rest = text[len(begun) :].strip() if begun else ""
        answer = cut_to(rest, lambda part: len(part) <= response_chars) if rest else None
        if begun is None or answer is None:
            yield Removed("no_sentence_that_fits")
            continue
        request = turn("user", f"{instruction}\n\n{begun}")
        yield "demonstration", {"messages": [request, turn("assistant", answer)]}


def _record(kind: str, row: Row, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: must be a JSON object, got {row!r:.60}")
    record = dict(row)
    record.pop("source", None)  # the mixture names it
    if record.get("meta") in (None, ""):  # an empty cell
        record.pop("meta", None)
    detect_kind(record, where=where)
    # whether all are tied is a matter of counting
    return validate(kind, record, where=where, allow_all_tied=True)


def _strings(row: Row, where: str) -> Adapted:
    if not isinstance(row, str) or not row.strip():
        raise UserError(f"{where}: must be a JSON string that is not empty, got {row!r:.60}")
    yield "prompt", {"prompt": [turn("user", row.strip())]}


OWN = (
    Format("messages", "messages", lambda r: "messages" in r, _messages, True),
    Format(
        "comparison",
        "prompt, completions, ranks or pairs",
        lambda r: "completions" in r,
        _native("comparison"),
        True,
    ),
)
"""To be asked first."""

OWN_LAST = (
    Format("prompt", "prompt", lambda r: "prompt" in r, _native("prompt"), True),
    Format("text", "text", lambda r: "text" in r, _text, True),
    Format("continuation", "by name only: text to be continued", lambda _: False, _continuation),
    Format("strings", "bare JSON strings, each a prompt", lambda _: False, _strings, True),
)
"""To be asked when nothing that has more keys fits."""
