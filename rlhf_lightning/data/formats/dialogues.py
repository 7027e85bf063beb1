"""Conversations: ShareGPT lists and the message trees of OpenAssistant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import dropwhile
from typing import Any

from rlhf_lightning.data.formats.base import (
    Adapted,
    Format,
    Removed,
    Row,
    field,
    text_of,
    turn,
    with_system,
    without_empty_system,
)
from rlhf_lightning.data.records import Message
from rlhf_lightning.errors import UserError

_SHAREGPT = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
}
_OASST = {"prompter": "user", "assistant": "assistant"}
_SPAM = 0.5
"""Share of reviewers who called a message spam, from which on it is left out."""

Node = dict[str, Any]


@with_system
def _sharegpt(row: Row, where: str) -> Adapted:
    turns = field(row, "conversations", where)
    if not isinstance(turns, list):
        raise UserError(f"{where}: conversations must be a list of turns, got {turns!r:.60}")
    messages = [_said(item, f"{where}: conversations[{i}]") for i, item in enumerate(turns)]
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=None)
    if last is None:
        yield Removed("no_answer")
        return
    if last + 1 < len(messages):
        yield Removed("turn_after_the_last_answer")
    messages = without_empty_system(messages[: last + 1])
    if messages and messages[0]["role"] == "assistant":
        yield Removed("answer_before_the_first_question")
        messages = list(dropwhile(lambda m: m["role"] == "assistant", messages))
    if not all(message["content"] for message in messages):
        yield Removed("empty")
    elif not any(message["role"] == "user" for message in messages):
        yield Removed("no_prompt")
    else:
        yield "demonstration", {"messages": messages}


def _said(item: object, where: str) -> dict[str, str]:
    """A turn of `from` and `value`, or of `role` and `content`."""
    who, what = (
        ("role", "content") if isinstance(item, dict) and "role" in item else ("from", "value")
    )
    speaker = item.get(who) if isinstance(item, dict) else None
    if not isinstance(item, dict) or speaker not in _SHAREGPT:
        known = ", ".join(_SHAREGPT)
        raise UserError(f"{where}.{who} must be one of {known}, got {speaker!r:.60}")
    return turn(_SHAREGPT[speaker], text_of(item.get(what), f"{where}.{what}"))


def _oasst(row: Row, where: str, *, lang: str | None = None, synthetic: bool = True) -> Adapted:
    """Every assistant turn with two or more ranked replies is a comparison; the best replies make demonstrations.

    A message that was deleted, that reviewers refused, or that is spam is left out with all below it.
    Options: `lang` keeps messages of that language only; `synthetic=false` leaves out those a program wrote.
    """
    root = field(row, "prompt", where)
    if not isinstance(root, dict):
        raise UserError(f"{where}: prompt must be a message with replies, got {root!r:.60}")
    reason = _unfit(root, lang, synthetic)
    if reason is not None:
        yield Removed(reason)
        return
    yield from _prompter(root, [], where, lang, synthetic, best=True)


def _prompter(
    node: Node,
    before: Sequence[Message],
    where: str,
    lang: str | None,
    synthetic: bool,
    *,
    best: bool,
) -> Adapted:
    """What follows a prompter's message; `best`: every answer before it was the best one."""
    said = [*before, _message(node, where)]
    if said[-1]["role"] != "user":
        raise UserError(f"{where}: a prompter's message must stand here, got {node.get('role')!r}")
    yield "prompt", {"prompt": said}
    replies = yield from _kept(node, where, lang, synthetic)
    ranked = [reply for reply in replies if reply.get("rank") is not None]
    if len(replies) > 1:
        yield from (Removed("unranked_reply") for _ in range(len(replies) - len(ranked)))
    if len(ranked) > 1:
        texts = [_message(reply, where)["content"] for reply in ranked]
        ranks = [int(reply["rank"]) for reply in ranked]
        yield "comparison", {"prompt": said, "completions": texts, "ranks": ranks}
    first = min(ranked, key=lambda reply: reply["rank"]) if ranked else next(iter(replies), None)
    for reply in replies:
        on_path = best and reply is first
        answered = [*said, _message(reply, where)]
        further = yield from _kept(reply, where, lang, synthetic)
        goes_on = False
        for node_ in further:
            for item in _prompter(node_, answered, where, lang, synthetic, best=on_path):
                goes_on = goes_on or (not isinstance(item, Removed) and item[0] == "demonstration")
                yield item
        if on_path and not goes_on:  # else the longer conversations hold this one
            yield "demonstration", {"messages": answered}


def _kept(
    node: Node, where: str, lang: str | None, synthetic: bool
) -> Iterator[Removed]:  # ... and returns the replies that stay
    kept: list[Node] = []
    for reply in node.get("replies") or []:
        if not isinstance(reply, dict):
            raise UserError(f"{where}: replies must be messages, got {reply!r:.60}")
        reason = _unfit(reply, lang, synthetic)
        if reason is None:
            kept.append(reply)
        else:
            yield Removed(reason)
    return kept  # type: ignore[return-value]


def _unfit(node: Node, lang: str | None, synthetic: bool) -> str | None:
    if node.get("deleted"):
        return "deleted"
    if node.get("review_result") is False:
        return "refused_by_reviewers"
    spam = (node.get("labels") or {}).get("spam")
    if isinstance(spam, dict) and (spam.get("value") or 0) >= _SPAM:
        return "spam"
    if lang is not None and node.get("lang") != lang:
        return "other_language"
    if not synthetic and node.get("synthetic"):
        return "synthetic"
    text = node.get("text")
    return "empty" if isinstance(text, str) and not text.strip() else None


def _message(node: Node, where: str) -> dict[str, str]:
    role = node.get("role")
    if role not in _OASST:
        raise UserError(f"{where}: role must be prompter or assistant, got {role!r:.60}")
    return turn(_OASST[role], text_of(node.get("text"), f"{where}: text"))


DIALOGUES = (
    Format("sharegpt", "conversations of from, value", lambda r: "conversations" in r, _sharegpt),
    Format(
        "oasst",
        "prompt with text and replies",
        lambda r: isinstance(r.get("prompt"), dict) and "text" in r["prompt"],
        _oasst,
    ),
)
