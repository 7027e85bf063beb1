"""The page of a search from rows that are written by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from rlhf_lightning.evaluation.sweep_curves import curves_to_show
from rlhf_lightning.evaluation.sweep_figures import best_so_far, figures_of, trial_curves
from rlhf_lightning.evaluation.sweep_parallel import Scale, goodness
from rlhf_lightning.evaluation.sweep_report import (
    SweepReport,
    TrialRow,
    in_order,
    parameter,
    render,
    summary_line,
)
from rlhf_lightning.runs.curves import Curves, run_curves


def trial(number: int, *values: float, **others: object) -> TrialRow:
    state = "COMPLETE" if values else "FAIL"
    given = {"state": state, "params": {"x": float(number)}, **others}
    return TrialRow(number, values=list(values) or None, **given)  # type: ignore[arg-type]


def report(*trials: TrialRow, direction: str = "maximize", objectives: int = 1) -> SweepReport:
    names = [f"ppo/m{i}" for i in range(objectives)]
    return SweepReport("Sweep s", names, [direction] * objectives, list(trials))


def test_what_comes_from_trials_is_escaped() -> None:
    row = trial(0, params={"a<b": "<i>"}, reason="<script>alert(1)</script>")
    page = render(report(row))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<i>" not in page


def test_the_best_so_far_changes_only_where_it_is_better() -> None:
    points = [(0, 1.0), (3, 2.0), (1, 0.5), (4, 2.0)]
    assert best_so_far(points, "maximize") == [(0, 1.0), (3, 2.0)]
    assert best_so_far(points, "minimize") == [(0, 1.0), (1, 0.5)]
    assert best_so_far([], "minimize") == []


def test_a_logarithmic_axis_has_its_geometric_mean_in_the_middle() -> None:
    scale = Scale([1e-4, 1e-2], log=True)
    assert scale.height(1e-3) == pytest.approx(0.5)  # √(10⁻⁴ · 10⁻²)
    assert [text for _, text in scale.ticks()] == ["0.0001", "0.001", "0.01"]
    assert Scale([0.0, 4.0]).height(1.0) == 0.25


def test_choices_are_spread_evenly_and_one_value_lies_in_the_middle() -> None:
    scale = Scale(["nano", "small", None, "nano"])
    assert [scale.height(v) for v in ("nano", "small", None)] == [0.0, 0.5, 1.0]
    assert Scale([3, 3]).height(3) == 0.5
    assert Scale([True, False]).ticks() == [(0.0, "true"), (1.0, "false")]


def test_the_best_is_the_brightest_in_either_direction() -> None:
    rows = [trial(0, 3.0), trial(1, 1.0), trial(2, 2.0), trial(3)]
    assert goodness(report(*rows)) == {1: 0.0, 2: 0.5, 0: 1.0}
    assert goodness(report(*rows, direction="minimize")) == {0: 0.0, 2: 0.5, 1: 1.0}


def test_the_console_has_the_best_first_and_what_has_no_value_last() -> None:
    rows = [
        trial(0),
        trial(1, 1.0, best=True),
        trial(2, 5.0, violations={"a <= 1": 2.0}),
        trial(3, 0.5),
    ]
    found = report(*rows)
    assert [row.number for row in in_order(found)] == [1, 3, 2, 0]
    assert summary_line(found) == "4 trials: 3 COMPLETE, 1 FAIL"
    assert summary_line(report()) == "0 trials: none"


def test_a_choice_may_hold_dollar_signs() -> None:
    rows = [trial(i, float(i), params={"x": float(i), "kind": k}) for i, k in enumerate("ab")]
    rows.append(trial(2, 2.0, params={"x": 2.0, "kind": "${a}_${b}"}))
    assert "kind" in render(report(*rows))


def test_every_figure_is_drawn_or_says_why_not() -> None:
    curves = {"val/x": [(0, 0.1), (1, math.nan), (2, 0.3)], "val/y": [(0, 1.0)]}
    rows = [
        trial(0, 1.0, 2.0, curves=curves, best=True),
        trial(1, 2.0, 1.0, params={"x": 1.0, "kind": "a"}, violations={"a <= 1": math.inf}),
        trial(2, state="PRUNED", curves=curves),
        trial(3, state="RUNNING", params={}),
    ]
    full = report(*rows, objectives=2)
    full.shown_curves = ["val/x", "val/y", "val/z"]
    titles = [title for title, figure, _ in figures_of(full) if figure is not None]
    assert titles == [
        "Optimisation history",
        "Pareto front",
        "Parallel coordinates",
        "Learning curves",
    ]
    drawn = trial_curves(full)
    assert drawn is not None
    assert [ax.get_title(loc="left") for ax in drawn.axes] == ["val/x", "val/y"]
    # two trials; the value that is no number is left out
    assert [np.size(line.get_xdata()) for line in drawn.axes[0].get_lines()] == [2, 2]
    empty = report()
    assert [figure for _, figure, _ in figures_of(empty)] == [None] * 4
    assert all(caption for _, _, caption in figures_of(empty))


def csv(folder: Path, *lines: str) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("\n".join([*lines, ""]), encoding="utf-8")


def test_the_rounds_of_a_pipeline_follow_each_other(tmp_path: Path) -> None:
    csv(tmp_path / "pretrain", "step,pretrain/val/loss", "4,2.5")
    csv(tmp_path / "round-2" / "ppo", "step,val/score", "0,2", "3,4")
    csv(tmp_path / "round-1" / "ppo", "step,val/score", "0,1", "5,2")
    csv(tmp_path / "round-1" / "sft-small", "step,sft/val/loss", "0,9")
    assert run_curves(tmp_path) == {
        "pretrain/val/loss": [(4, 2.5)],
        # the second round begins where the first ended, at 5
        "val/score": [(0, 1.0), (5, 2.0), (5, 2.0), (8, 4.0)],
    }


def curves_of(*names: str) -> Curves:
    return {name: [(0, 1.0)] for name in names}


def test_the_curves_shown_are_those_of_the_search() -> None:
    ppo = curves_of("val/gold_score", "val/score", "val/kl_k1", "rollout/score")
    shown = curves_to_show([ppo], ["ppo/gold_score"], "val/kl_k1")
    assert shown == ["val/kl_k1", "val/gold_score", "val/score"]
    sft = curves_of("sft/train/loss", "sft/val/loss")
    assert curves_to_show([sft], ["sft/val_loss"], None) == ["sft/val/loss"]
    # none is the objective's: all of validations
    assert curves_to_show([sft], ["time/sft_s"], None) == ["sft/val/loss"]
    assert curves_to_show([], ["sft/val_loss"], None) == []


@pytest.mark.parametrize(
    ("value", "text"), [(0.012345678, "0.01235"), (3, "3"), (True, "true"), (None, "null")]
)
def test_a_parameter_is_shown_as_one_would_write_it(value: object, text: str) -> None:
    assert parameter(value) == text
