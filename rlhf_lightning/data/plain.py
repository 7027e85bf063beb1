"""Text in which a special token's string is only a string.

People write "<|im_end|>" too. Where it stands in a message, a text or a completion it must not end a turn. Texts
without such strings (nearly all) are tokenised as ever. In others each string is replaced by a mark that no template
and no text has before the template is applied; afterwards the marks tell what was written by people: that is
tokenised by a copy of the tokenizer that knows no special tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
"""Not characters: Unicode keeps them for a program's own use."""
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


class PlainText:
    """Marks special strings in what people wrote, and tokenises marked text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        self._special = _special_tokens(tokenizer)
        # the marks' own characters are escaped as well, so that no text can pretend to be marked
        self._strings = [_OPEN, _CLOSE, *sorted(self._special, key=len, reverse=True)]
        self._find = re.compile("|".join(map(re.escape, self._strings)))
        self._place = {text: place for place, text in enumerate(self._strings)}

    def marked(self, text: str) -> str:
        """The text with a mark for every special string."""
        if self._find.search(text) is None:
            return text
        return self._find.sub(lambda found: f"{_OPEN}{self._place[found[0]]}{_CLOSE}", text)

    def is_marked(self, text: str) -> bool:
        return _OPEN in text

    def unmarked(self, text: str) -> str:
        """What was written."""
        return _MARK.sub(lambda found: self._strings[int(found[1])], text)

    def encode(self, text: str) -> list[int]:
        """Ids of a marked text: special tokens where the template wrote them, none in what was marked."""
        ids: list[int] = []
        for number, part in enumerate(self._split.split(text)):
            if number % 2:
                ids.append(self._special[part.strip() if part not in self._special else part])
            elif part:
                ids += self._said(self.unmarked(part))
        return ids

    @cached_property
    def _split(self) -> re.Pattern[str]:
        """Special strings, with the white space that belongs to them."""
        tokens = {t.content: t for t in self._backend.get_added_tokens_decoder().values()}
        parts = [
            (r"\s*" if tokens[text].lstrip else "")
            + re.escape(text)
            + (r"\s*" if tokens[text].rstrip else "")
            for text in self._strings[2:]
        ]
        return re.compile(f"({'|'.join(parts) or '(?!)'})")

    @cached_property
    def _plain(self) -> Any:
        import json

        from tokenizers import Tokenizer

        state = json.loads(self._backend.to_str())
        kept = [t for t in state["added_tokens"] if t["content"] not in self._special]
        # what adds special tokens of its own is never asked for
        return Tokenizer.from_str(
            json.dumps(
                state
                | {
                    "added_tokens": kept,
                    "post_processor": None,
                    "padding": None,
                    "truncation": None,
                }
            )
        )

    def _said(self, text: str) -> list[int]:
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if set(ids).isdisjoint(self._special.values()):
            return ids
        # a vocabulary whose pieces include the string itself: it is broken after its first character
        broken, start = [], 0
        for found in self._find.finditer(text):
            broken.append(text[start : found.start() + 1])
            start = found.start() + 1
        parts = [part for part in (*broken, text[start:]) if part]
        return [i for part in parts for i in self._plain.encode(part, add_special_tokens=False).ids]


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """String → id of the tokens that mean something: special ones, and those that the chat template writes."""
    named = {str(token) for token in tokenizer.all_special_tokens}
    template = str(tokenizer.chat_template or "")
    return {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special
        or token.content in named
        or (token.content.strip() and token.content in template)
    }


_made: WeakKeyDictionary[Any, tuple[Any, PlainText]] = WeakKeyDictionary()


def plain_text(tokenizer: PreTrainedTokenizerBase) -> PlainText:
    """The tokenizer's own, made again when tokens or template have changed."""
    state = (len(tokenizer), tokenizer.chat_template, tuple(map(str, tokenizer.all_special_tokens)))
    found = _made.get(tokenizer)
    if found is None or found[0] != state:
        found = _made[tokenizer] = (state, PlainText(tokenizer))
    return found[1]


def marked_messages(plain: PlainText, messages: Sequence[Any]) -> list[Any]:
    """Messages whose contents are marked."""
    return [{**message, "content": plain.marked(message["content"])} for message in messages]
