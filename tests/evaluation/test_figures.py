from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_lightning.evaluation.figures import (
    PANELS,
    SHOWN_TOKENS,
    heat_strip,
    learning_curves,
    score_over_kl,
    win_rate_bars,
)
from rlhf_lightning.evaluation.style import figure_to_svg
from rlhf_lightning.runs.curves import read_metrics
from tests.evaluation.fake import curves


def test_metrics_csv_is_read_as_one_curve_for_each_metric(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,a,b\n1,0.5,\n2,0.25,7\n2,,8\n3,0.1")  # the last row was cut by a kill
    assert read_metrics(path) == {"a": [(1, 0.5), (2, 0.25)], "b": [(2, 8.0)]}


def test_no_metrics_csv_is_no_curves(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "absent.csv") == {}


def test_a_figure_for_each_stage_holds_a_panel_for_each_metric_group() -> None:
    for stage, panels in PANELS.items():
        figure = learning_curves(curves(), panels)
        assert figure is not None, stage
        assert len(figure.axes) == len(panels)


def test_panels_find_metrics_under_a_stage_prefix_and_leave_out_what_is_absent() -> None:
    figure = learning_curves({"sft/train/loss": [(0, 1.0), (1, 0.5)]}, PANELS["sft"])
    assert figure is not None
    assert list(figure.axes[0].get_lines()[0].get_ydata()) == [1.0, 0.5]
    assert learning_curves({}, PANELS["sft"]) is None


def test_values_that_are_not_finite_are_left_out() -> None:
    figure = learning_curves({"train/loss": [(0, 1.0), (1, float("nan"))]}, PANELS["sft"])
    assert figure is not None
    assert list(figure.axes[0].get_lines()[0].get_ydata()) == [1.0]


def test_score_over_kl_joins_steps() -> None:
    found = {
        "val/kl_k1": [(0, 0.0), (1, 4.0), (2, 9.0)],
        "val/score": [(0, 0.0), (1, 1.0)],
        "val/gold_score": [(0, 0.5), (1, 0.6), (2, 0.4)],
    }
    figure = score_over_kl(found)
    assert figure is not None
    assert list(figure.axes[0].get_lines()[0].get_xdata()) == [0.0, 4.0]
    assert score_over_kl({}) is None


def test_win_rate_bars_show_known_pairs_only() -> None:
    metrics = {"a/win_rate_vs_b": 0.75, "a/win_rate_vs_b_ci95": 0.05, "a/tie_rate_vs_b": 0.1}
    figure = win_rate_bars(metrics, [("a", "b"), ("a", "c")])
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].texts] == ["75.0 ± 5.0 % · 10% ties"]
    assert win_rate_bars({}, [("a", "b")]) is None


def test_heat_strip_needs_a_number_for_each_token() -> None:
    figure = heat_strip(["a", "$", "\n"], {"kl_k1": [0.0, 1.0, -1.0], "value": [0.0, 0.0, 0.0]})
    assert len(figure.axes) == 2
    with pytest.raises(ValueError, match="value must have 1 numbers, got 2"):
        heat_strip(["a"], {"value": [1.0, 2.0]})


def test_the_same_numbers_give_the_same_svg_which_takes_the_pages_colours() -> None:
    first, second = (learning_curves(curves(), PANELS["sft"]) for _ in range(2))
    assert first is not None
    assert second is not None
    text = figure_to_svg(first)
    assert text == figure_to_svg(second)
    assert text.startswith("<svg")
    assert "var(--ink)" in text
    assert "#22262b" not in text


def test_a_heat_strip_shows_the_first_tokens_of_a_long_response() -> None:
    many = SHOWN_TOKENS + 5
    figure = heat_strip(["a"] * many, {"kl_k1": [1.0] * many})
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_xticklabels()][-2:] == ["a", "... 5 more"]
    assert len(ax.get_xticklabels()) == SHOWN_TOKENS + 1


def test_a_name_with_dollars_is_no_formula() -> None:
    """matplotlib's parser of formulas ended the page after all the work."""
    figure = win_rate_bars({"a$^$/win_rate_vs_sft": 0.6}, [("a$^$", "sft")])
    assert figure is not None and "a$^$ against sft" in figure_to_svg(figure)
