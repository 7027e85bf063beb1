"""Counts over records, each against a number worked out by hand."""

from __future__ import annotations

import math

import pytest

from rlhf_lightning.evaluation.data_report_statistics import (
    ComparisonCounts,
    Lengths,
    agreement,
    edges_for,
    length_bias,
    share,
    tied_pairs,
)


def test_quantiles_are_exact_by_nearest_rank() -> None:
    lengths = Lengths()
    lengths.add(range(1, 21))  # 1..20: 0.05 · 20 = 1st, 0.25 · 20 = 5th, 0.5 · 20 = 10th, 19th
    assert lengths.summary() == {
        "count": 20, "mean": 10.5, "min": 1, "p5": 1, "p25": 5, "p50": 10, "p75": 15, "p95": 19, "max": 20
    }  # fmt: skip


def test_equal_lengths_count_each() -> None:
    lengths = Lengths({3: 9, 100: 1})
    assert (lengths.quantile(0.9), lengths.quantile(0.91)) == (3, 100)  # 9th and 10th of ten
    assert lengths.mean == pytest.approx(12.7)  # (27 + 100) / 10
    assert (lengths.over(3), lengths.over(2), lengths.over(100)) == (1, 10, 0)
    assert (lengths + Lengths({3: 1})).counts == {3: 10, 100: 1}


def test_no_lengths_have_no_quantile() -> None:
    assert Lengths().summary() == {"count": 0} and math.isnan(Lengths().mean)
    with pytest.raises(ValueError, match="no lengths"):
        Lengths().quantile(0.5)


@pytest.mark.parametrize("longest", [0, 1, 29, 30, 31, 1000])
def test_a_histogram_holds_every_length_once(longest: int) -> None:
    lengths = Lengths(dict.fromkeys(range(longest + 1), 2))
    edges = edges_for(longest)
    assert sum(lengths.histogram(edges)) == 2 * (longest + 1)
    assert len(edges) <= 32 and edges[0] == 0


def test_histogram_bins_hold_their_lower_edge() -> None:
    assert Lengths({0: 1, 4: 2, 5: 3, 9: 4}).histogram([0, 5, 10]) == [3, 7]


def test_tied_pairs_of_ranks() -> None:
    # 0 0 0 1 1 2: 3 pairs of rank 0 and 1 pair of rank 1, of 6 · 5 / 2
    assert tied_pairs([0, 0, 0, 1, 1, 2]) == (4, 15)
    assert tied_pairs([0, 1]) == (0, 1)


def test_length_bias_counts_the_longer_winners() -> None:
    # winners of length 5, 5, 2, 2 over 2, 5, 5, 2
    assert length_bias([(0, 1), (0, 2), (1, 0), (1, 3)], [5, 2, 5, 2]) == (1, 1, 2)


def test_agreement_of_labels() -> None:
    # three labels 2:1 → 1 pair alike of 3; two 2:0 → 1 of 1; two 1:1 → 0 of 1; one label says nothing
    assert agreement([(2, 1), (2, 0), (1, 1), (0, 1)]) == (2, 5)


def test_shares_of_nothing_are_unknown() -> None:
    assert share(1, 4) == 0.25 and share(0, 0) is None
    assert ComparisonCounts().summary()["label_agreement"] is None


def test_the_summary_leaves_pairs_of_equal_length_out_of_the_bias() -> None:
    counts = ComparisonCounts(decided=10, longer=3, shorter=1, equal=6)
    assert counts.summary()["longer_wins_share"] == 0.75  # 3 / (3 + 1)
