"""Simulated labelers: their ranks, their noise and how far they agree."""

import pytest

from rlhf_lightning.data.world import HELD_OUT_LABELERS, LABELERS, TRAIN_LABELERS, World
from rlhf_lightning.data.world.judge import read
from rlhf_lightning.data.world.labelers import pair_agreement, utility


@pytest.mark.parametrize("seed", range(4))
def test_two_labelers_agree_as_often_as_people_do(seed):
    assert 0.72 <= World(seed).agreement() <= 0.77


def test_agreement_counts_the_pairs_that_neither_ties():
    # pairs (0,1): tied by the first; (0,2): alike; (1,2): the other way round
    assert pair_agreement([0, 0, 1], [0, 2, 1]) == (1, 2)


def test_labelers_of_training_and_held_out_are_different_people():
    assert set(TRAIN_LABELERS) | set(HELD_OUT_LABELERS) == set(LABELERS)
    assert not set(TRAIN_LABELERS) & set(HELD_OUT_LABELERS)


def test_ranks_are_dense_and_the_same_text_is_a_tie():
    world = World(0)
    for index in range(50):
        record = world.prompt("train", index)
        texts = world.spoken(record, 6, "ranks", index)
        ranks = world.rank(record, [*texts, texts[0]], "ada", index)
        assert ranks[-1] == ranks[0]
        assert sorted(set(ranks)) == list(range(max(ranks) + 1))
        assert ranks == world.rank(record, [*texts, texts[0]], "ada", index)


def test_ties_happen_between_different_texts():
    rows = [World(0).comparison("train", i) for i in range(60)]
    distinct = [(len({*row["completions"]}), len(set(row["ranks"]))) for row in rows]
    assert any(ranks < texts for texts, ranks in distinct)


def test_a_comparison_has_four_to_nine_completions_by_one_allowed_labeler():
    rows = [World(0).comparison("test", i, labelers=("flo",)) for i in range(60)]
    assert {row["meta"]["labeler"] for row in rows} == {"flo"}
    assert {len(row["completions"]) for row in rows} == set(range(4, 10))
    assert all(len(row["ranks"]) == len(row["completions"]) for row in rows)


def test_labelers_like_courtesies_more_than_the_judge_does():
    spec = {"task": "ask", "entity": "fox", "attribute": "colour", "form": "sentence"}
    spec |= {"ambiguous": False, "decline": False}
    short = read(spec, "The fox is red.")
    grovelling = read(spec, "Sure! Happy to help! The fox is red. Have a nice day! Of course!")
    for labeler in LABELERS.values():
        assert utility(labeler, grovelling) > utility(labeler, short)


def test_an_unknown_labeler_is_named():
    world = World(0)
    with pytest.raises(ValueError, match=r"labeler must be one of ada, .*, got 'zoe'"):
        world.rank(world.prompt("train", 0), ["a", "b"], "zoe", 0)
