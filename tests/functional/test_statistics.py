import itertools
import math

import pytest
import torch

from rlhf_lightning.functional.statistics import (
    best_of_n,
    expected_calibration_error,
    explained_variance,
    kl_bon,
)

NAN = math.nan


def test_explained_variance_by_hand():
    # returns 1, 3 (variance 1), errors 0, 1 (variance ¼): 1 − ¼
    got = explained_variance(
        torch.tensor([[1.0, 2.0, NAN]]),
        torch.tensor([[1.0, 3.0, NAN]]),
        torch.tensor([[True, True, False]]),
    )
    assert got.item() == pytest.approx(0.75)


def test_explained_variance_of_equal_returns_is_nan():
    x = torch.ones(1, 2)
    assert explained_variance(2 * x, x, x > 0).isnan()
    equal_but_for_rounding = torch.tensor([[-1.0, -1.0 + 2**-22]])
    assert explained_variance(2 * x, equal_but_for_rounding, x > 0).isnan()


def test_explained_variance_agrees_with_a_loop(draw, mask, lengths):
    values, returns = draw(*mask.shape), draw(*mask.shape)
    at = [(i, t) for i, n in enumerate(lengths) for t in range(n)]

    def var(xs):
        return sum((x - sum(xs) / len(xs)) ** 2 for x in xs) / len(xs)

    errors = [returns[k].item() - values[k].item() for k in at]
    want = 1 - var(errors) / var([returns[k].item() for k in at])
    assert explained_variance(values, returns, mask).item() == pytest.approx(want, abs=1e-5)


def test_calibration_by_hand():
    # confidences .9 (right), .9 (wrong: p = .1), .6 (right), in bins [.5, .75) and [.75, 1]:
    # |1 − .6| / 3 + |(1 − .9) + (0 − .9)| / 3 = .4/3 + .8/3
    got = expected_calibration_error(torch.tensor([0.9, 0.1, 0.6]), bins=2)
    assert got.item() == pytest.approx(0.4)


def test_calibration_of_both_orders_is_the_definition(draw):
    """Brute force on (p, won) and (1 − p, lost) with twice the bins over [0, 1]."""
    p = torch.sigmoid(2 * draw(200)).double()
    both = [(x, 1.0) for x in p.tolist()] + [(1 - x, 0.0) for x in p.tolist()]
    want = 0.0
    for b in range(20):
        inside = [(x, y) for x, y in both if b / 20 <= x < (b + 1) / 20 or (b == 19 and x == 1)]
        if inside:
            confidence = sum(x for x, _ in inside) / len(inside)
            accuracy = sum(y for _, y in inside) / len(inside)
            want += len(inside) / len(both) * abs(accuracy - confidence)
    assert expected_calibration_error(p).item() == pytest.approx(want, abs=1e-9)


def test_calibration_is_symmetric_and_zero_for_a_coin():
    p = torch.tensor([0.9, 0.3, 0.55])
    assert expected_calibration_error(torch.full((4,), 0.5)).item() == 0
    assert expected_calibration_error(torch.tensor([1.0, 1.0])).item() == 0
    assert expected_calibration_error(torch.tensor([0.0])).item() == 1
    # 3 of 4 right at confidence ¾ is perfect
    assert expected_calibration_error(torch.tensor([0.75, 0.75, 0.75, 0.25])).item() == 0
    assert 0 < expected_calibration_error(p).item() < 1


def test_kl_of_best_of_n():
    assert kl_bon(1) == 0
    assert kl_bon(2) == pytest.approx(math.log(2) - 0.5)
    assert kl_bon(16) == pytest.approx(math.log(16) - 15 / 16)


def test_best_of_n_by_hand():
    # best of 2 from {1, 2, 4}: pairs have 2, 4, 4
    scores = torch.tensor([1.0, 2.0, 4.0])
    assert best_of_n(scores, 2).item() == pytest.approx(10 / 3)
    assert best_of_n(scores, 1).item() == pytest.approx(7 / 3)
    assert best_of_n(scores, 3).item() == pytest.approx(4.0)


@pytest.mark.parametrize("n", range(1, 8))
def test_best_of_n_is_the_mean_over_all_subsets(draw, n):
    scores, gold = draw(7), draw(7)
    subsets = list(itertools.combinations(range(7), n))
    best = [max(subset, key=lambda i: scores[i].item()) for subset in subsets]
    want = sum(scores[i].item() for i in best) / len(subsets)
    want_gold = sum(gold[i].item() for i in best) / len(subsets)
    assert best_of_n(scores, n).item() == pytest.approx(want, abs=1e-5)
    assert best_of_n(scores, n, values=gold).item() == pytest.approx(want_gold, abs=1e-5)


def test_best_of_n_does_not_overflow():
    assert best_of_n(torch.ones(5000), 2500).item() == pytest.approx(1.0, abs=1e-4)


def test_bad_arguments_are_refused():
    none = torch.zeros(0)
    with pytest.raises(ValueError, match=r"probabilities must not be empty, got \(0,\)"):
        expected_calibration_error(none)
    with pytest.raises(ValueError, match="bins must be >= 1, got 0"):
        expected_calibration_error(torch.ones(1), bins=0)
    with pytest.raises(ValueError, match="n must be >= 1, got 0"):
        kl_bon(0)
    with pytest.raises(ValueError, match=r"n must be in 1..3 \(the samples\), got 4"):
        best_of_n(torch.zeros(3), 4)
