import math

import pytest
import torch

from rlhf_lightning.functional.scores import RunningMoments, clip_scores, eos_rule

SCORES = torch.tensor([2.0, 3.0, -5.0])
ENDED = torch.tensor([True, False, False])


@pytest.mark.parametrize(
    ("mode", "want"),
    [
        ("replace", [2.0, -1.0, -1.0]),
        ("subtract", [2.0, 3.0 - 1.0, -5.0 - 1.0]),
        ("keep", [2.0, 3.0, -5.0]),
    ],
)
def test_eos_rule_by_hand(mode, want):
    assert eos_rule(SCORES, ENDED, mode=mode, missing_eos_score=-1.0).tolist() == want
    assert SCORES.tolist() == [2.0, 3.0, -5.0]


def test_an_unknown_eos_rule_is_refused():
    message = r"ppo\.missing_eos must be one of replace, subtract, keep, got 'drop'"
    with pytest.raises(ValueError, match=message):
        eos_rule(SCORES, ENDED, mode="drop", missing_eos_score=-1.0)


def test_clip_by_hand():
    # only −5 is outside ±3; 3 itself is not changed
    clipped, share = clip_scores(SCORES, 3.0)
    assert clipped.tolist() == [2.0, 3.0, -3.0]
    assert share.item() == pytest.approx(1 / 3)


def test_a_clip_at_zero_is_refused():
    with pytest.raises(ValueError, match=r"ppo\.score_clip must be > 0, got 0"):
        clip_scores(SCORES, 0.0)


def test_moments_by_hand():
    # 1, 3 then 8: mean 4, variance 26/3
    moments = RunningMoments().update(torch.tensor([1.0, 3.0]))
    assert (moments.count, moments.mean, moments.var) == (2.0, 2.0, 1.0)
    after = moments.update(torch.tensor([8.0]))
    assert (after.count, after.mean) == (3.0, 4.0)
    assert after.var == pytest.approx(26 / 3)
    assert moments.count == 2.0  # update is pure


def test_moments_of_batches_are_those_of_all_scores(draw):
    scores = 3 * draw(50) + 100
    moments = RunningMoments()
    for part in scores.split([1, 7, 20, 2, 20]):
        moments = moments.update(part)
    assert moments.mean == pytest.approx(scores.double().mean().item(), rel=1e-6)
    assert moments.var == pytest.approx(scores.double().var(correction=0).item(), rel=1e-3)


def test_normalize_keeps_the_mean():
    # variance 4: halved, not centred
    moments = RunningMoments(count=10.0, mean=7.0, var=4.0)
    got = moments.normalize(torch.tensor([8.0, 6.0]))
    torch.testing.assert_close(got, torch.tensor([4.0, 3.0]))


def test_equal_scores_are_not_blown_up():
    scores = torch.full((3,), 0.1)
    moments = RunningMoments().update(scores)
    assert torch.equal(moments.normalize(scores), scores)


def test_no_score_at_all_is_refused():
    with pytest.raises(ValueError, match="mask must have a real token"):
        RunningMoments().update(torch.zeros(0))


def test_moments_are_plain_floats():
    moments = RunningMoments().update(torch.tensor([1.0, 2.0]))
    assert all(type(x) is float for x in (moments.count, moments.mean, moments.var))
    assert math.isclose(moments.var, 0.25)
