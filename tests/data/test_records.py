import time

import numpy as np
import pytest

from rlhf_lightning.data.index import Rules, splits_of
from rlhf_lightning.data.records import (
    SPLITS,
    detect_kind,
    keep_completions,
    key_hash,
    pairs_of,
    prompt_key,
    split_key,
    validate,
)
from rlhf_lightning.errors import UserError

USER = {"role": "user", "content": "Name a bird."}
REPLY = {"role": "assistant", "content": "Owl."}
DEMONSTRATION = {"messages": [USER, REPLY]}
COMPARISON = {"prompt": [USER], "completions": ["a", "b", "c"], "ranks": [1, 0, 1]}


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("demonstration", DEMONSTRATION),
        ("comparison", COMPARISON),
        ("comparison", {"prompt": [USER], "completions": ["a", ""], "pairs": [[0, 1]]}),
        ("prompt", {"prompt": [{"role": "system", "content": "Be kind."}, USER], "meta": {}}),
        ("text", {"text": "Owls fly.", "source": "mine"}),
    ],
)
def test_a_valid_record_passes_and_its_kind_is_seen(kind, record):
    assert detect_kind(record) == kind
    assert validate(kind, record, where="f:1") == record


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            COMPARISON | {"completions": ["a"]},
            "f:7: a comparison needs at least 2 completions, got 1",
        ),
        (
            {"messages": [USER]},
            "f:7: a demonstration must end with an assistant turn, got user",
        ),
        (
            COMPARISON | {"ranks": [0, 1]},
            "f:7: ranks must have one entry for each of 3 completions, got 2",
        ),
        (COMPARISON | {"ranks": [2, 2, 2]}, "f:7: ranks must not all be tied, got [2, 2, 2]"),
        (COMPARISON | {"ranks": "best"}, "f:7: ranks must be a list of integers, got 'best'"),
        (
            COMPARISON | {"completions": [1, 2]},
            "f:7: completions must be a list of texts, got [1, 2]",
        ),
        (
            COMPARISON | {"pairs": [[0, 1]]},
            "f:7: a comparison needs either ranks or pairs, got both",
        ),
        (
            {"prompt": [USER], "completions": ["a", "b"]},
            "f:7: a comparison needs either ranks or pairs, got neither",
        ),
        (
            {"prompt": [USER], "completions": ["a", "b"], "pairs": []},
            "f:7: pairs must be a list of [winner, loser] that is not empty, got []",
        ),
        (
            {"prompt": [USER], "completions": ["a", "b"], "pairs": [[0, 2]]},
            "f:7: pairs must be [winner, loser], two of the completions 0..1, got [0, 2]",
        ),
        (
            {"prompt": [USER], "completions": ["a", "b"], "pairs": [[0, 1], [1, 0]]},
            "f:7: pairs must name each two completions once, got [1, 0] again",
        ),
        ({"text": "  "}, "f:7: text must be text that is not empty, got '  '"),
        ({"text": "\ud83d"}, "f:7: text must be valid Unicode, got '\\ud83d'"),
        (
            COMPARISON | {"completions": ["a", "b", "\ud83d"]},
            "f:7: completions[2] must be valid Unicode, got '\\ud83d'",
        ),
        ({"text": "a", "meta": 3}, "f:7: meta must be an object, got 3"),
        ({"prompt": []}, "f:7: prompt must be a list of messages that is not empty, got []"),
        (
            {"prompt": [USER, REPLY]},
            "f:7: a prompt must end before the assistant speaks, got assistant",
        ),
        (
            {"prompt": [{"role": "human", "content": "hi"}]},
            "f:7: prompt[0].role must be one of system, user, assistant, got 'human'",
        ),
        (
            {"prompt": [{"role": "user", "content": ""}]},
            "f:7: prompt[0].content must be text that is not empty, got ''",
        ),
        (
            {"messages": [REPLY]},
            "f:7: messages must have a user turn, got ['assistant']",
        ),
        (
            {"prompt": [USER], "meta": {"references": ["x \ud83d"]}},
            "f:7: meta.references must be valid Unicode, got 'x \\ud83d'",
        ),
    ],
)
def test_a_broken_record_is_refused_with_its_place(record, message):
    with pytest.raises(UserError) as error:
        validate(detect_kind(record), record, where="f:7")
    assert str(error.value) == message


def test_a_record_of_no_kind_or_of_another_kind_is_refused():
    with pytest.raises(
        UserError, match=r"f:2: a record needs one of the keys .* got \['question'\]"
    ):
        detect_kind({"question": 1}, where="f:2")
    with pytest.raises(
        UserError, match="f:2: must be a text like the records before it, got a prompt"
    ):
        validate("text", {"prompt": [USER]}, where="f:2")


def test_generated_comparisons_may_be_all_tied():
    validate("comparison", COMPARISON | {"ranks": [0, 0, 0]}, where="f", allow_all_tied=True)


def test_pairs_leave_ties_out_and_count_distinct_ranks():
    # distinct ranks 0 < 3 < 9 are places 0, 1, 2
    pairs, distances = pairs_of({"ranks": [3, 0, 3, 9]})
    assert dict(zip(pairs, distances, strict=True)) == {
        (1, 0): 1,
        (1, 2): 1,
        (1, 3): 2,
        (0, 3): 1,
        (2, 3): 1,
    }


def test_given_pairs_are_kept_and_one_apart():
    assert pairs_of({"pairs": [[2, 0], [0, 1]]}) == ([(2, 0), (0, 1)], [1, 1])


def test_dropping_completions_keeps_the_order_of_the_others():
    assert keep_completions(COMPARISON, [0, 1])["ranks"] == [1, 0]
    given = {"completions": ["a", "b", "c"], "pairs": [[2, 0], [0, 1]]}
    assert keep_completions(given, [0, 2]) == {"completions": ["a", "c"], "pairs": [[1, 0]]}


def test_prompts_that_differ_in_case_or_space_have_one_key():
    other = {"role": "user", "content": " name  A\nbird. "}
    assert prompt_key([USER]) == prompt_key([other])


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("Ｎame ﬁsh", "name fish"),  # a wide letter, and two letters written as one
        ("STRASSE", "straße"),
    ],
)
def test_prompts_of_the_same_letters_in_other_signs_have_one_key(text, other):
    keys = {prompt_key([{"role": "user", "content": content}]) for content in (text, other)}
    assert len(keys) == 1


def test_all_turns_of_a_conversation_share_a_split():
    later = {"prompt": [USER, REPLY, {"role": "user", "content": "Another."}]}
    assert split_key(later) == split_key({"prompt": [USER]}) == split_key(DEMONSTRATION)


def test_split_shares_are_the_fractions():
    keys = np.array([key_hash(str(i)) for i in range(10_000)], np.uint64)
    splits = splits_of(keys, Rules(validation_fraction=0.1, test_fraction=0.2))
    # binomial: sd of a share is at most sqrt(0.2 * 0.8 / 10,000) = 0.004
    assert abs((splits == SPLITS.index("test")).mean() - 0.2) < 0.016
    assert abs((splits == SPLITS.index("validation")).mean() - 0.1) < 0.012
    # as a number in [0, 1): test below 0.2, validation below 0.3
    edges = np.array([0, round(0.19 * 2**64), round(0.21 * 2**64), round(0.31 * 2**64)], np.uint64)
    found = [SPLITS[i] for i in splits_of(edges, Rules(0.1, 0.2))]
    assert found == ["test", "test", "validation", "train"]


def test_a_million_marks_in_one_word_take_no_time():
    """It runs for every row; it took the square of the row's length."""
    began = time.monotonic()
    assert prompt_key([{"role": "user", "content": "a" + "!" * 1_000_000 + "1"}]).endswith("!1")
    assert time.monotonic() - began < 5
