"""Where sentences end, and cutting a text there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

_END = re.compile(r"""[.!?…]["'”’)\]]*(?=\s|$)|\n""")


def sentence_ends(text: str) -> list[int]:
    """Lengths of the beginnings that end with a sentence or a line, ascending; the whole text is the last."""
    ends = [match.end() for match in _END.finditer(text)]
    return ends if ends and ends[-1] == len(text) else [*ends, len(text)]


def cut_to(text: str, fits: Callable[[str], bool]) -> str | None:
    """The longest beginning of `text` that ends with a sentence and fits; None if not even the first one does.

    `fits` must hold for every beginning of a text for which it holds; it is asked about log₂(sentences) times.
    """
    ends = sentence_ends(text)
    low, high = 0, len(ends)  # the first `low` ends fit, those from `high` on do not
    best: str | None = None
    while low < high:
        middle = (low + high) // 2
        part = text[: ends[middle]].rstrip()
        if part and fits(part):
            best, low = part, middle + 1
        elif part:
            high = middle
        else:  # nothing but white space so far
            low = middle + 1
    return best


def first_chars(text: str, count: int | None) -> str:
    """The whole sentences among the first `count` characters; the bare characters if there is no such sentence."""
    if count is None or len(text) <= count:
        return text
    return cut_to(text, lambda part: len(part) <= count) or text[:count].rstrip()


def chunks(lines: Iterable[str], count: int) -> Iterator[str]:
    """A text in pieces of at most about `count` characters, cut between paragraphs, else between sentences.

    A sentence that alone is longer is cut between words. Nothing is lost but white space at the seams.
    """
    piece = ""
    for paragraph in _paragraphs(lines, count):
        if piece and len(piece) + 2 + len(paragraph) > count:
            yield piece
            piece = ""
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph
    if piece:
        yield piece


def _paragraphs(lines: Iterable[str], count: int) -> Iterator[str]:
    """Paragraphs, or as long parts of them as `count` allows; at most one line more than that is in memory."""
    held = ""
    for line in lines:
        bare = line.strip()
        if not bare and held:
            yield held
            held = ""
        elif bare:
            held = f"{held}\n{line.rstrip()}" if held else line.rstrip()
        start = 0
        while len(held) - start > count:
            part = _part(held[start : start + count], count)
            yield part
            start += len(part)
            while start < len(held) and held[start].isspace():
                start += 1
        held = held[start:]
    if held:
        yield held


def _part(text: str, count: int) -> str:
    ends = [end for end in sentence_ends(text[:count])[:-1] if text[:end].strip()]
    spaces = text.rfind(" ", 1, count)
    # a line's end counts as a sentence's, but prose that is broken into lines should be cut at a full stop
    stops = [end for end in ends if text[end - 1] != "\n"] or ends
    end = stops[-1] if stops else spaces if spaces > 0 else count
    return text[:end].rstrip() or text[:count]
