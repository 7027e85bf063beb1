"""`mix.over_long=cut`: what is too long is cut at the end of a sentence, and its beginning kept.

Cut are: raw text; a demonstration's last reply, or else its longest user message; a prompt's longest user message; a
completion. A user message that ends with a short paragraph of its own, a question after passages, keeps that and loses
the end of what is before it, unless that paragraph alone is too long. What still does not fit stays as it is, and the
caller drops and counts it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_lightning.data.encode import (
    encode_completion,
    encode_demonstration,
    encode_prompt,
    encode_prompts,
    encode_text,
)
from rlhf_lightning.data.records import Message, Record
from rlhf_lightning.data.sentences import cut_to

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[Message]
_BETWEEN_PARAGRAPHS = re.compile(r"\n[^\S\n]*\n\s*")


def cut_text(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> str | None:
    """A beginning of the text that fits; None if there is none."""
    return cut_to(text, lambda part: encode_text(tokenizer, part, max_length) is not None)


def cut_demonstration(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    max_length: int,
    max_reply_tokens: int | None = None,
) -> Messages | None:
    """The conversation with a shorter last reply, or else with a shorter longest user message; None if neither fits.

    The last reply is cut to `max_reply_tokens` before either.
    """
    last = len(messages) - 1

    def fits(changed: Messages) -> bool:
        return encode_demonstration(tokenizer, changed, max_length) is not None

    if max_reply_tokens is not None:
        limit = max_reply_tokens
        reply = cut_to(
            messages[last]["content"],
            lambda text: len(encode_completion(tokenizer, text)) <= limit,
        )
        if reply is None:
            return None
        messages = [*messages[:last], {**messages[last], "content": reply}]
    return _cut_message(messages, last, fits) or _cut_asked(messages, fits)


def cut_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_prompt_tokens: int
) -> Messages | None:
    """The prompt with a shorter longest user message; None if it still does not fit."""

    def fits(changed: Messages) -> bool:
        return len(encode_prompt(tokenizer, changed)) <= max_prompt_tokens

    return _cut_asked(messages, fits)


def cut_comparisons(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[Record], int]:
    """Comparisons whose prompts take at most half of the room where a completion does not fit behind them, and whose
    completions are cut to the rest; how many completions and prompts were cut.
    """
    prompts = encode_prompts(tokenizer, [record["prompt"] for record in records])
    changed, cut = [], 0
    for record, ids in zip(records, prompts, strict=True):
        shorter, count = _cut_comparison(record, len(ids), tokenizer, max_length)
        changed.append(shorter)
        cut += count
    return changed, cut


def _cut_comparison(
    record: Record, prompt_tokens: int, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[Record, int]:
    sizes = [len(encode_completion(tokenizer, text)) for text in record["completions"]]
    if prompt_tokens + max(sizes) <= max_length:
        return record, 0
    cut = 0
    if prompt_tokens > max_length // 2:
        room = max(max_length // 2, max_length - max(sizes))
        shorter = cut_prompt(tokenizer, record["prompt"], room)
        if shorter is not None:
            record, cut = {**record, "prompt": shorter}, 1
            prompt_tokens = len(encode_prompt(tokenizer, shorter))
    room = max_length - prompt_tokens
    completions = list(record["completions"])
    for place, (text, size) in enumerate(zip(completions, sizes, strict=True)):
        if size > room:
            part = cut_to(text, lambda p: len(encode_completion(tokenizer, p)) <= room)
            completions[place], cut = (text, cut) if part is None else (part, cut + 1)
    return {**record, "completions": completions}, cut


def _cut_asked(messages: Sequence[Message], fits: Callable[[Messages], bool]) -> Messages | None:
    """The messages with less of the longest one that the user said."""
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    longest = max(users, key=lambda i: len(messages[i]["content"]))
    request = _request(messages[longest]["content"])
    if request and not fits(_with_content(messages, longest, request.lstrip())):
        request = ""
    return _cut_message(messages, longest, fits, keep=request)


def _request(text: str) -> str:
    """The last paragraph with the white space before it, if it is the smaller part of the text; else nothing."""
    text = text.rstrip()
    breaks = list(_BETWEEN_PARAGRAPHS.finditer(text))
    last = text[breaks[-1].start() :] if breaks else ""
    return last if len(last) < len(text) / 2 else ""


def _cut_message(
    messages: Sequence[Message], place: int, fits: Callable[[Messages], bool], *, keep: str = ""
) -> Messages | None:
    """The messages with the longest beginning of one of them, and `keep`, its end, that makes the whole fit."""
    text = messages[place]["content"]
    if keep:
        text = text.rstrip().removesuffix(keep)
    part = cut_to(text, lambda start: fits(_with_content(messages, place, start + keep)))
    return None if part is None else _with_content(messages, place, part + keep)


def _with_content(messages: Sequence[Message], place: int, content: str) -> Messages:
    message: Any = {**messages[place], "content": content}
    return [*messages[:place], message, *messages[place + 1 :]]
