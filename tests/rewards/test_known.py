"""The built-in text rewards, by hand."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.known import LexiconSentiment, RougeLength, TooShort

VADER = (
    Path(os.environ.get("RLHF_DATA") or Path(__file__).parents[3] / "shared" / "data")
    / "vader_lexicon/vader_lexicon.txt"
)


def record(*references: str) -> dict[str, object]:
    return {"prompt": [], "source": "s", "meta": {"references": list(references)}}


def test_rouge_by_hand_with_a_length_term() -> None:
    # cat sat | the cat sat down: 2 of 2 and 2 of 4 words → F1 4/6; pairs 1 of 1 and 1 of 3 → F1 2/4; LCS as words
    near = (4 / 6 + 2 / 4 + 4 / 6) / 3
    rouge = RougeLength(target_words=4, length_weight=0.3)
    found = rouge("", "cat sat", record=record("the cat sat down"))
    assert found == pytest.approx(near - 0.3 * (1 - 2 / 4))
    assert rouge("", "the cat sat down", record=record("The cat sat down.")) == pytest.approx(1)


def test_the_nearest_reference_counts() -> None:
    rouge = RougeLength(target_words=1, length_weight=0.0, kinds=["rouge1"])
    assert rouge("", "a b", record=record("x y", "a c", "b a")) == pytest.approx(1)
    assert rouge("", "a b", record=record("x y", "a c")) == pytest.approx(1 / 2)


def test_the_length_term_is_bounded() -> None:
    rouge = RougeLength(target_words=2, length_weight=0.5)
    assert rouge("", "", record=record("a b")) == -0.5
    assert rouge("", "x " * 50, record=record("a b")) == -0.5
    assert rouge("", "x y", record=record("a b")) == 0


@pytest.mark.parametrize(
    ("response", "score"), [("", -1), ("a", -0.75), ("a b c d", 0), ("x " * 9, 0)]
)
def test_too_few_words_cost_what_is_missing(response: str, score: float) -> None:
    assert TooShort(min_words=4)("", response) == score


def test_too_short_needs_a_number_of_words() -> None:
    with pytest.raises(UserError, match=r"^min_words must be >= 1, got 0$"):
        TooShort(min_words=0)


@pytest.mark.parametrize("meta", [{}, {"references": []}, {"references": "text"}])
def test_a_record_without_references_is_refused(meta: dict[str, object]) -> None:
    with pytest.raises(
        UserError, match=r"RougeLength needs records whose meta.references is a list"
    ):
        RougeLength(target_words=3)("", "a", record={"source": "s", "meta": meta})


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"target_words": 0}, "target_words must be >= 1, got 0"),
        ({"target_words": 3, "length_weight": -1}, "length_weight must be >= 0, got -1"),
        ({"target_words": 3, "kinds": ["rougeX"]}, "kinds must be of rouge1, rouge2, rougeL"),
        ({"target_words": 3, "kinds": []}, "kinds must be of rouge1, rouge2, rougeL"),
    ],
)
def test_rouge_settings_out_of_range_are_refused(args: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        RougeLength(**args)


@pytest.fixture
def lexicon(tmp_path: Path) -> str:
    path = tmp_path / "lexicon.txt"
    path.write_text("good\t1.9\t0.9\t[2, 2]\nbad\t-2.5\t0.7\t[-3, -2]\nok\t1.2\n:)\t2.0\n")
    return str(path)


def test_sentiment_is_the_squashed_mean_of_the_known_words(lexicon: str) -> None:
    sentiment = LexiconSentiment(path=lexicon)
    assert sentiment("", "A good, GOOD dog") == pytest.approx(math.tanh(1.9 / 2))
    assert sentiment("", "good and bad") == pytest.approx(math.tanh((1.9 - 2.5) / 2 / 2))
    assert sentiment("", "a dog") == 0
    assert sentiment("good", "a dog") == 0  # the prompt plays no part


def test_a_negation_turns_the_three_words_after_it(lexicon: str) -> None:
    sentiment = LexiconSentiment(path=lexicon)
    turned = math.tanh(-0.74 * 1.9 / 2)
    assert sentiment("", "not good") == pytest.approx(turned)
    assert sentiment("", "It isn’t a very good dog") == pytest.approx(turned)
    assert sentiment("", "not that I know, good dog") == pytest.approx(math.tanh(1.9 / 2))


def test_saying_too_little_has_the_lowest_score(lexicon: str) -> None:
    sentiment = LexiconSentiment(path=lexicon, min_words=3)
    assert sentiment("", "good good") == -1
    assert sentiment("", "good good dog") > 0
    assert -1 < sentiment("", "bad bad bad") < 0


def test_a_file_that_is_no_lexicon_is_refused(tmp_path: Path, lexicon: str) -> None:
    with pytest.raises(
        UserError, match=r"path must be a lexicon file, got .* which does not exist"
    ):
        LexiconSentiment(path=str(tmp_path / "nowhere"))
    Path(lexicon).write_text("good\t1.9\nbad\n")
    with pytest.raises(UserError, match=r"lexicon.txt:2: must be WORD tab NUMBER, got 'bad'"):
        LexiconSentiment(path=lexicon)
    Path(lexicon).write_text("\n")
    with pytest.raises(UserError, match="must hold at least one word"):
        LexiconSentiment(path=lexicon)


@pytest.mark.skipif(not VADER.is_file(), reason=f"no VADER lexicon at {VADER} (RLHF_DATA)")
def test_vaders_own_lexicon_is_read_whole() -> None:
    sentiment = LexiconSentiment(path=str(VADER))
    assert len(sentiment.valences) > 7000
    assert sentiment("", "I love it, it is wonderful") > 0.5 > 0 > sentiment("", "a terrible loss")
