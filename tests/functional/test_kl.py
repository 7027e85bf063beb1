import math

import pytest
import torch

from rlhf_lightning.functional.kl import adapt_kl_coef, kl_k1, kl_k2, kl_k3


def test_estimators_by_hand():
    # k1 = log 2: ½ (log 2)², and 1/2 − 1 + log 2
    p, q = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert kl_k1(p, q).item() == pytest.approx(math.log(2))
    assert kl_k2(p, q).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_k3(p, q).item() == pytest.approx(math.log(2) - 0.5)


def test_estimators_agree_with_plain_python(draw):
    p, q = draw(4, 5), draw(4, 5)
    for i in range(4):
        for j in range(5):
            k1 = p[i, j].item() - q[i, j].item()
            assert kl_k1(p, q)[i, j].item() == pytest.approx(k1, rel=1e-5, abs=1e-6)
            assert kl_k2(p, q)[i, j].item() == pytest.approx(k1 * k1 / 2, rel=1e-5, abs=1e-6)
            k3 = math.exp(-k1) - 1 + k1
            assert kl_k3(p, q)[i, j].item() == pytest.approx(k3, rel=1e-4, abs=1e-6)


def test_k1_and_k3_have_the_kl_as_their_expectation(draw):
    p, q = draw(6).log_softmax(0).double(), draw(6).log_softmax(0).double()
    true = (p.exp() * (p - q)).sum()
    torch.testing.assert_close((p.exp() * kl_k1(p, q)).sum(), true)
    torch.testing.assert_close((p.exp() * kl_k3(p, q)).sum(), true)


def test_k3_is_exact_where_the_policies_hardly_differ():
    # k3 ≈ k1²/2 = 5e-9, which 1 + 1e-4 in fp32 cannot resolve
    got = kl_k3(torch.tensor([1e-4], dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    assert got.item() == pytest.approx(5e-9, rel=1e-3)
    assert kl_k3(torch.tensor([1e-4]), torch.zeros(1)).item() >= 0


@pytest.mark.parametrize(
    ("kl", "want"),
    [
        (6.0, 0.05),  # on target
        (12.0, 0.05 * (1 + 0.2 * 128 / 10_000)),  # 12/6 − 1 = 1, clipped to 0.2
        (0.0, 0.05 * (1 - 0.2 * 128 / 10_000)),  # −1, clipped to −0.2
        (6.6, 0.05 * (1 + 0.1 * 128 / 10_000)),  # 0.1
    ],
)
def test_the_coefficient_follows_the_kl(kl, want):
    got = adapt_kl_coef(0.05, kl, target=6.0, horizon=10_000, episodes=128)
    assert got == pytest.approx(want)


def test_a_kl_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="kl must be finite, got nan"):
        adapt_kl_coef(0.05, math.nan, target=6.0, horizon=10_000, episodes=128)
