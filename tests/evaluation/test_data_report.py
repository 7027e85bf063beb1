"""The page about a mix: complete, self-contained, and what comes from data is escaped."""

from __future__ import annotations

import io
import json

from rich.console import Console

from rlhf_lightning.evaluation.data_report import (
    DataReport,
    Part,
    Piece,
    ShownRow,
    ShownText,
    render,
    visible,
)
from rlhf_lightning.evaluation.data_report_console import tables
from rlhf_lightning.evaluation.data_report_statistics import ComparisonCounts, Lengths


def part(source: str = "mine", split: str = "train", **changes) -> Part:
    lengths = {
        "prompt": Lengths({10: 3}),
        "completion": Lengths({4: 6}),
        "whole": Lengths({14: 5, 90: 1}),
    }
    counts = ComparisonCounts(
        decided=4, longer=3, shorter=1, tied=2, ranked_pairs=8, alike=1, labels=2
    )
    counts.completions.update([2, 2, 3])
    given = {
        "read": 3, "size": 3, "mix_share": 0.25, "lengths": lengths, "comparisons": counts,
        "limits": {"whole": ("model.context_length", 64)}, "duplicates": 1, "near_duplicates": 2,
    }  # fmt: skip
    return Part(source, "comparison", split, **(given | changes))


def page(**changes) -> str:
    pieces = [
        Piece("<|user|>", [4], special=True, target=False),
        Piece("<b>\n", [60, 61], special=False, target=False),
        Piece("Yes", [70], special=False, target=True),
    ]
    row = ShownRow(
        "comparison",
        "mine",
        7,
        [ShownText("completion 0, rank 0", pieces, 5, 1)],
        "longer than x=3",
    )
    given = {
        "title": "Data of <mix>",
        "parts": [part()],
        "rows": [row],
        "provenance": {"seed": "0"},
    }
    return render(DataReport(**(given | changes)))


def test_the_page_stands_alone() -> None:
    html = page()
    assert "http" not in html.replace("http://www.w3.org", "") and "<script" not in html
    assert html.count("<svg") == 1 and html.rstrip().endswith("</html>")


def test_texts_of_the_data_are_escaped_and_marked() -> None:
    html = page()
    assert "<h1>Data of &lt;mix&gt;</h1>" in html
    assert '<span class=" s" title="4">&lt;|user|&gt;</span>' in html
    assert '<span class="" title="60 61">&lt;b&gt;↵\n</span>' in html
    assert '<span class="t" title="70">Yes</span>' in html
    assert (
        "1 more tokens" in html and "longer than x=3" in html and "may hold offensive text" in html
    )


def test_numbers_stand_where_they_belong() -> None:
    html = page(removed=[("mine.too_short", 12)], labeler_agreement=0.75)
    for text in (
        "2: 2, 3: 1",
        "25.0 %",
        "75.0 %",
        "50.0 % of 2",
        "mine.too_short",
        "model.context_length=64",
    ):
        assert text in html
    assert "sample</span>" not in html
    assert "sample</span>" in page(parts=[part(size=None)])


def test_parts_without_records_or_comparisons_are_shown_too() -> None:
    empty = part(lengths={"text": Lengths()}, limits={}, comparisons=None, read=0, mix_share=None)
    html = page(parts=[empty], rows=[])
    assert "<svg" not in html and "Comparisons" not in html and "Rows as the model" not in html


def test_a_figure_draws_four_sources_and_says_so() -> None:
    parts = [
        part(source=f"s{i}", lengths={"prompt": Lengths({i: 9 - i})}, limits={}) for i in range(6)
    ]
    html = page(parts=parts)
    assert "the 4 largest sources" in html
    drawn = html[html.index("<svg") : html.index("</svg>")]
    assert "s3" in drawn and "s4" not in drawn


def test_the_summary_is_json() -> None:
    summary = json.loads(
        json.dumps(DataReport("x", [part()], removed=[("a.b", 2)]).summary(), allow_nan=False)
    )
    assert summary["parts"][0]["too_long"] == {"model.context_length": 1}
    assert summary["parts"][0]["comparisons"]["tie_share"] == 0.25
    assert summary["removed"] == {"a.b": 2}


def test_the_console_has_the_same_numbers() -> None:
    console = Console(width=200, file=io.StringIO())
    for table in tables(DataReport("x", [part("[red]mine")], removed=[("a.b", 2)])):
        console.print(table)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    for text in (
        "[red]mine",
        "1 > model.context_length",
        "whole 14 90 90",
        "2: 2  3: 1",
        "50.0 % of 2",
        "a.b",
    ):
        assert text in said


def test_control_characters_are_visible() -> None:
    assert visible("a\tb\nc\x00\r") == "a→\tb↵\nc␀␍"
