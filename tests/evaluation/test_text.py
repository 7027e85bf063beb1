from __future__ import annotations

import pytest

from rlhf_lightning.evaluation.text import distinct_n, repeated_phrase_rate


def test_distinct_n_counts_different_ngrams_over_all_texts() -> None:
    # words: a b a | a c -> 3 of 5 are different; pairs: ab ba | ac -> all 3 are
    assert distinct_n(["a b a", "a c"], 1) == 3 / 5
    assert distinct_n(["a b a", "a c"], 2) == 1.0


def test_distinct_n_takes_token_lists() -> None:
    assert distinct_n([[1, 1, 1, 1]], 1) == 1 / 4


def test_nothing_said_is_zero_distinct_and_zero_repeated() -> None:
    assert distinct_n([], 2) == 0.0
    assert distinct_n([""], 1) == 0.0
    assert repeated_phrase_rate([]) == 0.0


def test_a_repeated_phrase_needs_n_words_twice() -> None:
    texts = ["a b c d a b c d", "a b c a b c", "x a b c d y a b c d"]
    assert repeated_phrase_rate(texts) == 2 / 3
    assert repeated_phrase_rate(texts, n=3) == 1.0


def test_ngrams_need_a_positive_n() -> None:
    with pytest.raises(ValueError, match="n must be >= 1, got 0"):
        distinct_n(["a"], 0)
