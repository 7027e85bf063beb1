"""What can be said about responses by looking at their words alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

Text = str | Sequence[Hashable]
"""A string (cut into words at white space) or a list of tokens."""


def distinct_n(texts: Sequence[Text], n: int) -> float:
    """Different n-grams over all n-grams of all texts; 0 where there is none.

    Raises: ValueError if n < 1.
    Source: Li et al. 2016, arXiv:1510.03055, section 5.
    """
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repeated_phrase_rate(texts: Sequence[Text], n: int = 4) -> float:
    """Share of texts in which some n-gram comes twice; 0 for no texts.

    Raises: ValueError if n < 1.
    """
    if not texts:
        return 0.0
    repeats = 0
    for text in texts:
        grams = _ngrams(text, n)
        repeats += len(set(grams)) < len(grams)
    return repeats / len(texts)


def _ngrams(text: Text, n: int) -> list[tuple[Hashable, ...]]:
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n!r}")
    words: Sequence[Hashable] = text.split() if isinstance(text, str) else text
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
