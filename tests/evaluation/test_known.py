from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import Any

import pytest

from rlhf_lightning.evaluation.known import gains
from rlhf_lightning.evaluation.metrics import model_metrics
from rlhf_lightning.evaluation.report import ReportData, render_report
from rlhf_lightning.evaluation.samples import ModelSamples


def said(name: str, **more: Any) -> ModelSamples:
    return ModelSamples(
        name=name,
        prompts=[{"prompt": [{"role": "user", "content": str(i)}]} for i in range(3)],
        responses=["a", "b", "c"],
        response_tokens=[1, 1, 1],
        ended=[True] * 3,
        **more,
    )


def p_value(differences: Sequence[float]) -> float:
    assert list(differences) == [1.0, 0.0, 2.0]
    return 0.25


def test_a_gain_is_the_mean_paired_difference_and_is_in_units_of_the_references_spread() -> None:
    models = {
        "sft": said("sft", scores=[0.0, 1.0, 2.0], known={"rouge": [0.0, 1.0, 0.0]}),
        "ppo": said("ppo", scores=[3.0, 3.0, 3.0], known={"rouge": [1.0, 1.0, 2.0]}),
    }
    assert gains(models, "sft", p_value) == {
        "ppo/known/rouge_gain_vs_sft": 1.0,  # (1 + 0 + 2) / 3
        "ppo/known/rouge_p_vs_sft": 0.25,
        "ppo/reward_gain_in_sft_sd": 2.0,  # (3 − 1) / 1
    }
    assert statistics.stdev([0, 1, 2]) == 1
    assert model_metrics(models["ppo"])["ppo/known/rouge"] == pytest.approx(4 / 3)


def test_scores_that_do_not_differ_have_no_unit() -> None:
    models = {n: said(n, scores=[1.0, 1.0, 1.0]) for n in ("sft", "ppo")}
    assert gains(models, "sft", p_value) == {}


def test_models_with_other_prompts_are_not_compared() -> None:
    models = {n: said(n, scores=[1.0, 2.0, 3.0]) for n in ("sft", "ppo")}
    models["ppo"].prompts.reverse()
    with pytest.raises(ValueError, match="must answer the same prompts"):
        gains(models, "sft", p_value)


def test_a_known_score_has_one_number_for_each_prompt() -> None:
    with pytest.raises(ValueError, match=r"sft.known.rouge must have one element for each of 3"):
        said("sft", known={"rouge": [1.0]})


def test_the_report_shows_means_gains_and_p_values() -> None:
    metrics = {
        "sft/prompts": 3.0,
        "ppo/prompts": 3.0,
        "sft/known/rouge": 0.25,
        "ppo/known/rouge": 0.5,
        "ppo/known/rouge_gain_vs_sft": 0.25,
        "ppo/known/rouge_p_vs_sft": 0.125,
    }
    page = render_report(ReportData("a run", metrics=metrics))
    assert "Known scores" in page
    row = page.split("<td>rouge</td>", maxsplit=1)[1].split("</tr>", maxsplit=1)[0]
    assert re.findall(r"0\.\d+", row) == ["0.250", "0.500", "0.250", "0.125"]
    without = {k: v for k, v in metrics.items() if "known" not in k}
    assert "Known scores" not in render_report(ReportData("a run", metrics=without))
