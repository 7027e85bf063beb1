"""The four kinds of records, as plain dicts, and the rules that each must keep.

    demonstration  {"messages": [{"role", "content"}, ...]}       the last message is the assistant's
    comparison     {"prompt": [messages], "completions": [K texts], "ranks": [K ints, 0 = best, ties allowed]}
                   or "pairs": [[winner, loser], ...] in place of ranks
    prompt         {"prompt": [messages]}
    text           {"text": str}

Any record may also carry "source" (the name of its origin) and "meta" (a dict that only its source reads).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhf_lightning.errors import UserError

KINDS = ("demonstration", "comparison", "prompt", "text")
SPLITS = ("train", "validation", "test")
ROLES = ("system", "user", "assistant")

Record = dict[str, Any]
Message = Mapping[str, str]


def detect_kind(record: Mapping[str, Any], *, where: str = "record") -> str:
    """The kind that a record's keys tell.

    Raises: UserError if the keys fit no kind.
    """
    for key, kind in (("messages", "demonstration"), ("completions", "comparison")):
        if key in record:
            return kind
    for kind in ("prompt", "text"):
        if kind in record:
            return kind
    raise UserError(
        f"{where}: a record needs one of the keys messages (demonstration), prompt and completions "
        f"(comparison), prompt, text; got {sorted(map(str, record))}"
    )


def validate(
    kind: str, record: Mapping[str, Any], *, where: str, allow_all_tied: bool = False
) -> Record:
    """The record, if it keeps the rules of its kind.

    `allow_all_tied` is for generated comparisons: a labeler may see no difference between any two.

    Raises: UserError `where: what is allowed, got what`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    found = detect_kind(record, where=where)
    if found != kind:
        raise UserError(f"{where}: must be a {kind} like the records before it, got a {found}")
    if "meta" in record and not isinstance(record["meta"], dict):
        raise UserError(f"{where}: meta must be an object, got {record['meta']!r:.60}")
    _all_unicode(record.get("meta"), f"{where}: meta")
    if kind == "text":
        _text(record["text"], f"{where}: text")
    elif kind == "demonstration":
        _demonstration(record["messages"], where)
    else:
        _prompt(record["prompt"], where)
        if kind == "comparison":
            _comparison(record, where, allow_all_tied)
    return dict(record)


def prompt_of(record: Mapping[str, Any]) -> list[Message]:
    """The messages up to where the assistant's last turn begins; raw text counts as one user message."""
    if "messages" in record:  # public data sets have a column `prompt` beside it
        return list(record["messages"][:-1])
    if "prompt" in record:
        return list(record["prompt"])
    return [{"role": "user", "content": record["text"]}]


def prompt_key(messages: Iterable[Message]) -> str:
    """Text that is the same for prompts that differ only in case, white space or the marks at the ends of words."""
    return "\n".join(f"{m['role']}: {_folded(m['content'])}" for m in messages)


_MARK = r"""[.,;:!?…"'“”‘’«»()\[\]]"""
# from a run's first mark on, and all of it or nothing: linear in its length
_MARKS = re.compile(rf"(?<!\S){_MARK}+|(?<!{_MARK}){_MARK}++(?!\S)")
"""Marks at a word's end. Those inside a word and all signs stay: 2-2 is not 2+2, and C is not C++."""


def _folded(text: str) -> str:
    return " ".join(_MARKS.sub("", unicodedata.normalize("NFKC", text).casefold()).split())


def split_key(record: Mapping[str, Any]) -> str:
    """What decides a record's split: its conversation up to the first user message, without a system message.

    Two turns of one conversation share it, so that no split sees the answer to another split's prompt.
    """
    opening: list[Message] = []
    for message in prompt_of(record):
        if message["role"] != "system":
            opening.append(message)
        if message["role"] == "user":
            break
    return prompt_key(opening)


def key_hash(key: str) -> int:
    """The first 64 bits of a key's sha256."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def pairs_of(record: Mapping[str, Any]) -> tuple[list[tuple[int, int]], list[int]]:
    """All (winner, loser) pairs of a comparison and the rank distance of each.

    Distances count distinct ranks (0, 0, 7 is one apart), so that they do not depend on how ties are numbered;
    a comparison that is given as pairs has distance 1 everywhere. Ties give no pair.
    """
    if "pairs" in record:
        pairs = [(int(winner), int(loser)) for winner, loser in record["pairs"]]
        return pairs, [1] * len(pairs)
    place = {rank: i for i, rank in enumerate(sorted(set(record["ranks"])))}
    dense = [place[rank] for rank in record["ranks"]]
    pairs = [(w, l) for w in range(len(dense)) for l in range(len(dense)) if dense[w] < dense[l]]  # noqa: E741
    return pairs, [dense[loser] - dense[winner] for winner, loser in pairs]


def keep_completions(record: Mapping[str, Any], kept: Sequence[int]) -> Record:
    """The comparison with only the completions whose indices are `kept`."""
    smaller = {**record, "completions": [record["completions"][i] for i in kept]}
    if "pairs" in record:
        new = {old: i for i, old in enumerate(kept)}
        smaller["pairs"] = [[new[w], new[x]] for w, x in record["pairs"] if w in new and x in new]
    else:
        smaller["ranks"] = [record["ranks"][i] for i in kept]
    return smaller


def _text(value: object, where: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where} must be text that is not empty, got {value!r:.60}")
    _unicode(value, where)


def _unicode(value: str, where: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as a broken \ud83d escape leaves it
        raise UserError(f"{where} must be valid Unicode, got {value!r:.60}") from None


def _all_unicode(value: object, where: str) -> None:
    if isinstance(value, str):
        _unicode(value, where)
    elif isinstance(value, dict):
        for key, item in value.items():
            _unicode(str(key), where)
            _all_unicode(item, f"{where}.{key}")
    elif isinstance(value, list):
        for item in value:
            _all_unicode(item, where)


def _messages(value: object, where: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where} must be a list of messages that is not empty, got {value!r:.60}")
    for i, message in enumerate(value):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            raise UserError(
                f"{where}[{i}].role must be one of {', '.join(ROLES)}, got {role!r:.60}"
            )
        _text(message.get("content"), f"{where}[{i}].content")
    if not any(message["role"] == "user" for message in value):
        raise UserError(f"{where} must have a user turn, got {[m['role'] for m in value]}")
    return value


def _demonstration(value: object, where: str) -> None:
    messages = _messages(value, f"{where}: messages")
    if messages[-1]["role"] != "assistant":
        raise UserError(
            f"{where}: a demonstration must end with an assistant turn, got {messages[-1]['role']}"
        )


def _prompt(value: object, where: str) -> None:
    if _messages(value, f"{where}: prompt")[-1]["role"] == "assistant":
        raise UserError(f"{where}: a prompt must end before the assistant speaks, got assistant")


def _comparison(record: Mapping[str, Any], where: str, allow_all_tied: bool) -> None:
    completions = record["completions"]
    # An empty completion is allowed: a policy may end at once, and must be able to lose for it.
    if not isinstance(completions, list) or not all(isinstance(c, str) for c in completions):
        raise UserError(f"{where}: completions must be a list of texts, got {completions!r:.60}")
    for i, completion in enumerate(completions):
        _unicode(completion, f"{where}: completions[{i}]")
    if len(completions) < 2:
        raise UserError(
            f"{where}: a comparison needs at least 2 completions, got {len(completions)}"
        )
    if ("ranks" in record) == ("pairs" in record):
        got = "both" if "ranks" in record else "neither"
        raise UserError(f"{where}: a comparison needs either ranks or pairs, got {got}")
    if "ranks" in record:
        _ranks(record["ranks"], len(completions), where, allow_all_tied)
    else:
        _pairs(record["pairs"], len(completions), where)


def _ranks(ranks: object, count: int, where: str, allow_all_tied: bool) -> None:
    if not isinstance(ranks, list) or not all(type(rank) is int for rank in ranks):
        raise UserError(f"{where}: ranks must be a list of integers, got {ranks!r:.60}")
    if len(ranks) != count:
        raise UserError(
            f"{where}: ranks must have one entry for each of {count} completions, got {len(ranks)}"
        )
    if len(set(ranks)) < 2 and not allow_all_tied:
        raise UserError(f"{where}: ranks must not all be tied, got {ranks!r:.60}")


def _pairs(pairs: object, count: int, where: str) -> None:
    if not isinstance(pairs, list) or not pairs:
        raise UserError(
            f"{where}: pairs must be a list of [winner, loser] that is not empty, got {pairs!r:.60}"
        )
    seen: set[frozenset[int]] = set()
    for pair in pairs:
        valid = isinstance(pair, list | tuple) and len(pair) == 2 and pair[0] != pair[1]
        if not valid or not all(type(i) is int and 0 <= i < count for i in pair):
            raise UserError(
                f"{where}: pairs must be [winner, loser], two of the completions 0..{count - 1}, got {pair!r:.60}"
            )
        if frozenset(pair) in seen:
            raise UserError(
                f"{where}: pairs must name each two completions once, got {pair!r:.60} again"
            )
        seen.add(frozenset(pair))
