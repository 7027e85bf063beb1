"""Rows of a mix as the model sees them: token by token, with what is learnt and what is special."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_lightning.data.cutting import (
    cut_comparisons,
    cut_demonstration,
    cut_prompt,
    cut_text,
)
from rlhf_lightning.data.encode import (
    Encoded,
    encode_completions,
    encode_demonstration,
    encode_prompt,
    encode_text,
)
from rlhf_lightning.data.mixture import Mixture
from rlhf_lightning.data.records import KINDS, Record
from rlhf_lightning.evaluation.data_report import Piece, ShownRow, ShownText
from rlhf_lightning.tasks.data_survey import NO_LIMIT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_TOKENS = 1500
"""Tokens of one text that a page shows; it says how many more there are."""
CHARACTER_TOKENS = 4
"""Tokens that may make one character together: UTF-8 has at most four bytes."""

Limits = dict[str, dict[str, tuple[str, int]]]


def shown_rows(
    mixture: Mixture,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows: int,
    records: int,
    seed: int,
    limits: Limits,
    over_long: str = "drop",
) -> list[ShownRow]:
    """`rows` training rows at random, shared evenly among the kinds that the mix has; all, where there are fewer."""
    sizes = dict(_sizes(mixture, records))
    found: list[ShownRow] = []
    for kind, count in _shares(rows, sizes).items():
        chosen = random.Random(f"{seed}/{kind}").sample(range(sizes[kind]), count)
        for index in sorted(chosen):
            record = mixture.record(kind, "train", index)
            limit = limits.get(kind, {})
            found.append(shown_row(kind, record, index, tokenizer, limit, over_long))
    return found


def _shares(rows: int, sizes: dict[str, int]) -> dict[str, int]:
    """How many rows of each kind: as many of each, and what a small kind has not from the others."""
    shares: dict[str, int] = {}
    left = rows
    for place, kind in enumerate(sorted(sizes, key=lambda kind: sizes[kind])):
        shares[kind] = min(sizes[kind], left // (len(sizes) - place))
        left -= shares[kind]
    return {kind: shares[kind] for kind in sizes}


def _sizes(mixture: Mixture, records: int) -> Iterator[tuple[str, int]]:
    for kind in (kind for kind in KINDS if mixture.has(kind)):
        size = mixture.size(kind, "train")
        yield kind, records if size is None else size


def shown_row(
    kind: str,
    record: Record,
    index: int,
    tokenizer: PreTrainedTokenizerBase,
    limits: dict[str, tuple[str, int]],
    over_long: str = "drop",
) -> ShownRow:
    """One record through the functions that training cuts and encodes it with."""
    encoded = list(_encoded(kind, record, tokenizer))
    note = over = _over(kind, encoded, limits)
    if over and over_long == "cut":
        shorter = _cut(kind, record, tokenizer, {name: most for name, (_, most) in limits.items()})
        if shorter is not None:
            record, encoded = shorter, list(_encoded(kind, shorter, tokenizer))
            over = _over(kind, encoded, limits)
            note = over or f"cut, was {note}"
    texts = [_shown(label, item, tokenizer) for label, item in encoded]
    return ShownRow(kind, str(record.get("source", "")), index, texts, note)


def _over(
    kind: str, encoded: Sequence[tuple[str, Encoded]], limits: dict[str, tuple[str, int]]
) -> str:
    """Which limits some sequence breaks."""
    return "; ".join(
        f"longer than {key}={limit}"
        for name, (key, limit) in limits.items()
        if name != "prompt" or kind == "prompt"
        if any(
            (item.reply_tokens if name == "reply" else len(item.ids)) > limit for _, item in encoded
        )
    )


def _cut(
    kind: str, record: Record, tokenizer: PreTrainedTokenizerBase, limits: dict[str, int]
) -> Record | None:
    """The record as `mix.over_long=cut` shortens it; None if it is left out."""
    if kind == "text":
        text = cut_text(tokenizer, record["text"], limits["text"])
        return None if text is None else {**record, "text": text}
    if kind == "prompt":
        prompt = cut_prompt(tokenizer, record["prompt"], limits["prompt"])
        return None if prompt is None else {**record, "prompt": prompt}
    if kind == "comparison":
        return cut_comparisons([record], tokenizer, limits["whole"])[0][0]
    messages = cut_demonstration(
        tokenizer, record["messages"], limits["whole"], limits.get("reply")
    )
    return None if messages is None else {**record, "messages": messages}


def _encoded(
    kind: str, record: Record, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, Encoded]]:
    """(label, tokens with their mask) of each sequence that the model reads for a record."""
    if kind == "text":
        yield "", _there(encode_text(tokenizer, record["text"], NO_LIMIT))
        return
    if kind == "demonstration":
        yield "", _there(encode_demonstration(tokenizer, record["messages"], NO_LIMIT))
        return
    prompt = encode_prompt(tokenizer, record["prompt"])
    if kind == "prompt":
        yield "", Encoded(prompt, [False] * len(prompt))
        return
    completions = encode_completions(tokenizer, record["completions"])
    for place, ids in enumerate(completions):
        mask = [False] * len(prompt) + [True] * len(ids)
        yield _label(record, place), Encoded(prompt + ids, mask)


def _there(encoded: Encoded | None) -> Encoded:
    assert encoded is not None  # NO_LIMIT
    return encoded


def _label(record: Record, place: int) -> str:
    if "ranks" in record:
        return f"completion {place}, rank {record['ranks'][place]}"
    better = [str(loser) for winner, loser in record["pairs"] if winner == place]
    return f"completion {place}" + (f", better than {', '.join(better)}" if better else "")


def _shown(label: str, encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> ShownText:
    kept = encoded.ids[:SHOWN_TOKENS]
    found = pieces(tokenizer, kept, encoded.loss_mask)
    return ShownText(label, found, len(encoded.ids), len(encoded.ids) - len(kept))


def pieces(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], loss_mask: Sequence[bool]
) -> list[Piece]:
    """The text of each token, as it reads behind the one before.

    Tokens that make one character only together are one piece; so no piece has half a character.
    """
    special = set(tokenizer.all_special_ids) | _added(tokenizer)
    found: list[Piece] = []
    before, start = (
        0,
        0,
    )  # ids[before:start] is the piece before, which decides about a leading space
    for end in range(1, len(ids) + 1):
        context = _decode(tokenizer, ids[before:start])
        text = _decode(tokenizer, ids[before:end])[len(context) :]
        half = text.endswith("\ufffd") and end - start < CHARACTER_TOKENS and end < len(ids)
        if half and ids[end] not in special and loss_mask[end] == loss_mask[start]:
            continue
        own = list(ids[start:end])
        found.append(Piece(text, own, own[0] in special, loss_mask[start]))
        before, start = start, end
    return found


def _added(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of what was added to the vocabulary as special: role tokens are often no bos, eos or pad."""
    decoder: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    return {i for i, token in decoder.items() if token.special}


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text: Any = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text
