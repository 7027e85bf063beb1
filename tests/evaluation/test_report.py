from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rlhf_lightning.evaluation.figures import Panel, learning_curves
from rlhf_lightning.evaluation.report import (
    ConfigChange,
    ReportData,
    ReportFigure,
    _known_rows,
    duration,
    number,
    percent,
    render_report,
    write_report,
)
from tests.evaluation.fake import report_data


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(report_data())


class Checker(HTMLParser):
    """Collects what a page would load, and checks that tags close."""

    VOID = frozenset(["meta", "br", "img", "link", "path", "use", "rect"])

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data") and value:
                self.loads.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert all(load.startswith("#") for load in checker.loads)
    assert "<script" not in page
    assert "@import" not in page
    assert re.search(r"url\((?!#)", page) is None


def test_the_page_says_what_was_found(page: str) -> None:
    data = report_data()
    for model in ("base", "sft", "ppo"):
        assert number(data.metrics[f"{model}/gold_score"]) in page
    assert percent(data.metrics["ppo/win_rate_vs_sft"]) in page
    assert "± " + percent(data.metrics["ppo/win_rate_vs_sft_ci95"]) in page
    for text in (
        "120 iterations of 128 episodes",
        "2 min 11 s",
        "ppo.kl_coef",
        "3f2c1ab",
        "Velm and Sarn.",
        "74.4 %",
    ):
        assert text in page


def test_every_metric_is_in_the_table(page: str) -> None:
    assert all(f"<span>{name}</span>" in page for name in report_data().metrics)


def test_text_from_models_and_data_is_escaped(page: str) -> None:
    assert "<b>steal</b>" not in page
    assert "&lt;b&gt;steal&lt;/b&gt;" in page
    changes = [ConfigChange("mix.path", None, "<script>alert(1)</script>")]
    figure = learning_curves({"a": [(0, 1.0), (1, 2.0)]}, [Panel("<script>&", {"<script>": "a"})])
    assert figure is not None
    shown = [ReportFigure("<script>", figure, "<script>")]
    assert "<script>" not in render_report(ReportData("<i>t</i>", changes=changes, figures=shown))


def test_an_evaluation_alone_and_an_empty_page_work() -> None:
    metrics = {"sft/gold_score": 0.5, "sft/prompts": 20.0, "x/odd": float("nan")}
    text = render_report(ReportData("only sft", metrics=metrics))
    assert "0.500" in text
    assert "n/a" in text
    assert "What was trained" not in text
    assert "every setting has its default" in render_report(ReportData("empty", changes=[]))


def test_write_report_leaves_one_file(tmp_path: Path) -> None:
    path = write_report(tmp_path / "deep" / "report.html", ReportData("t"))
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_numbers_read_well() -> None:
    assert [number(x) for x in (0.12345, -1.5, 60.0, 1234.0, 1e-5, 0.0, 2.5e7)] == [
        "0.123", "−1.500", "60", "1,234", "1.00e−05", "0.000", "2.50e+07",
    ]  # fmt: skip
    assert number(-0.0788, 1) == "−0.1"
    assert [duration(x) for x in (48.2, 65, 7810, None)] == ["48 s", "1 min 05 s", "2 h 10 min", ""]


def test_a_known_score_may_be_called_what_its_comparisons_are_called() -> None:
    data = report_data()
    data.metrics = {
        **data.metrics,
        "ppo/known/win_vs_ref": 0.5,
        "ppo/known/win_vs_ref_gain_vs_sft": 0.1,
        "ppo/known/win_vs_ref_p_vs_sft": 0.02,
    }
    assert [name for name, _ in _known_rows(data)] == ["win_vs_ref"]


def test_what_the_answers_measure_is_shown_without_a_gold_score() -> None:
    metrics = {
        "ppo/prompts": 40.0,
        "ppo/reward_score": 1.25,
        "ppo/kl_k1": 12.345,
        "ppo/eos_rate": 0.9,
    }
    text = "".join(render_report(ReportData("mine", models=["ppo"], metrics=metrics)).split())
    assert "Meansover40held-outprompts" in text
    for title, value in (("score", "1.25"), ("KL", "12.35"), ("ended", "0.90")):
        assert f'<thclass="r">{title}</th>' in text
        assert f'<tdclass="r">{value}</td>' in text
