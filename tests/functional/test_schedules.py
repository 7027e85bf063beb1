import math

import pytest

from rlhf_lightning.functional.schedules import lr_multiplier


def multipliers(total, **kwargs):
    return [lr_multiplier(step, total, **kwargs) for step in range(total)]


def test_linear_by_hand():
    # no warm-up, 5 steps from 1 towards 0.5: 0.1 less each, 0.5 after the last
    got = multipliers(5, name="linear", warmup_fraction=0.0, final_fraction=0.5)
    assert got == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6])


def test_every_step_learns_where_the_rate_falls_to_nothing():
    got = multipliers(4, name="linear", warmup_fraction=0.0, final_fraction=0.0)
    assert got == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_cosine_by_hand():
    # 4 steps: p = 0, ¼, ½, ¾; 0.1 + 0.9·(1 + cos πp)/2
    half = math.sqrt(0.5)
    got = multipliers(4, name="cosine", warmup_fraction=0.0, final_fraction=0.1)
    assert got == pytest.approx([1.0, 0.1 + 0.45 * (1 + half), 0.55, 0.1 + 0.45 * (1 - half)])


def test_warm_up_by_hand():
    # 0.5 · 8 = 4 steps rise by ¼; step 4 is the first of the 4 that fall from 1 towards 0.2
    got = multipliers(8, name="linear", warmup_fraction=0.5, final_fraction=0.2)
    assert got == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.8, 0.6, 0.4])


def test_constant_stays_after_its_warm_up():
    got = multipliers(5, name="constant", warmup_fraction=0.4, final_fraction=1.0)
    assert got == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5, 0.99])
@pytest.mark.parametrize("total", [2, 3, 10, 101])
def test_every_schedule_rises_then_falls_towards_its_final_fraction(name, warmup, total):
    options = {"name": name, "warmup_fraction": warmup, "final_fraction": 0.1}
    got = multipliers(total, **options)
    assert max(got) <= 1
    assert min(got) > 0
    assert lr_multiplier(total, total, **options) == pytest.approx(0.1)
    peak = got.index(max(got))
    assert got[: peak + 1] == sorted(got[: peak + 1])
    assert got[peak:] == sorted(got[peak:], reverse=True)


def test_a_single_step_has_the_full_rate():
    assert multipliers(1, name="cosine", warmup_fraction=0.9, final_fraction=0.0) == [1.0]


def test_a_step_after_the_end_keeps_the_final_fraction():
    got = lr_multiplier(99, 10, name="cosine", warmup_fraction=0.0, final_fraction=0.1)
    assert got == pytest.approx(0.1)


def test_bad_arguments_are_refused():
    rest = {"warmup_fraction": 0.0, "final_fraction": 0.1}
    message = "schedule.name must be one of cosine, linear, constant, got 'step'"
    with pytest.raises(ValueError, match=message):
        lr_multiplier(0, 10, name="step", **rest)
    with pytest.raises(ValueError, match="total_steps must be >= 1, got 0"):
        lr_multiplier(0, 0, name="linear", **rest)
    with pytest.raises(ValueError, match="step must be >= 0, got -1"):
        lr_multiplier(-1, 10, name="linear", **rest)
