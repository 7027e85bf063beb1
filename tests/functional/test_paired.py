from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from rlhf_lightning.functional import paired
from rlhf_lightning.functional.paired import sign_flip_p


def brute_force(differences: list[float]) -> float:
    """All sign assignments, zeros included."""
    observed = abs(math.fsum(differences))
    signs = itertools.product((1, -1), repeat=len(differences))
    sums = [abs(math.fsum(s * d for s, d in zip(row, differences, strict=True))) for row in signs]
    return sum(total >= observed - 1e-9 for total in sums) / len(sums)


def test_the_p_value_by_hand() -> None:
    # ±1 ±1 ±1: |sum| is 3 in two of eight
    assert sign_flip_p(torch.tensor([1.0, 1.0, 1.0])) == 2 / 8
    # |1 + 2 - 4| = 1: every sum of ±1 ±2 ±4 is at least that
    assert sign_flip_p(torch.tensor([1.0, 2.0, -4.0])) == 1
    assert sign_flip_p(torch.tensor([0.0, 0.0])) == 1


@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_count_over_all_signs(seed: int) -> None:
    rng = random.Random(seed)
    differences = [
        rng.choice([0.0, 0.1, -0.3, rng.gauss(0.3, 1)]) for _ in range(rng.randint(1, 10))
    ]
    assert sign_flip_p(torch.tensor(differences, dtype=torch.float64)) == pytest.approx(
        brute_force(differences)
    )


def test_neither_order_nor_sign_nor_scale_matters() -> None:
    given = torch.tensor([0.3, -0.1, 0.7, 0.2, 0.0, -0.4])
    p = sign_flip_p(given)
    assert sign_flip_p(-given) == sign_flip_p(given.flip(0)) == sign_flip_p(10 * given) == p


def test_many_prompts_use_the_normal_approximation_which_agrees_with_counting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    given = torch.randn(16, dtype=torch.float64) + 0.7
    exact = sign_flip_p(given)
    monkeypatch.setattr(paired, "EXACT", 15)
    assert 0.01 < exact < 0.5
    assert sign_flip_p(given) == pytest.approx(exact, abs=0.02)


def test_under_no_difference_small_p_values_are_as_rare_as_they_say() -> None:
    torch.manual_seed(0)
    found = [sign_flip_p(torch.randn(60)) for _ in range(2000)]
    share = sum(p < 0.05 for p in found) / len(found)
    assert abs(share - 0.05) < 0.015  # 3 standard errors of 2000 draws


def test_no_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="differences must not be empty"):
        sign_flip_p(torch.tensor([]))


def test_a_difference_that_is_no_number_has_no_p_value() -> None:
    for wrong in (math.nan, math.inf):
        assert math.isnan(sign_flip_p(torch.tensor([1.0, -1.0] * 4 + [wrong])))
