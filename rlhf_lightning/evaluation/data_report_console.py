"""The numbers of a data report as tables for the console."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from rlhf_lightning.evaluation.data_report import DataReport, Part
from rlhf_lightning.evaluation.data_report_statistics import ComparisonCounts, Lengths, share
from rlhf_lightning.evaluation.report import percent


def tables(report: DataReport) -> Iterator[Table]:
    """Records, comparisons, and what was removed."""
    yield _records(report)
    if any(part.comparisons for part in report.parts):
        yield _comparisons(report)
    if report.removed:
        table = _table("Removed by the mix", "what", "how many")
        for name, number in report.removed:
            _row(table, name, str(number))
        yield table


def _records(report: DataReport) -> Table:
    table = _table(
        "Records (lengths in tokens: median, 95 %, longest)",
        *("source", "kind", "split", "read", "share", "lengths"),
        *("too long", "duplicates", "prompt in train"),
    )
    for part in report.parts:
        _row(
            table,
            *(part.source, part.kind, part.split, _read(part), percent(part.mix_share, 0)),
            "\n".join(f"{name} {_lengths(lengths)}" for name, lengths in part.lengths.items()),
            "\n".join(f"{n:,} > {key}" for key, n in part.too_long().items() if n) or "0",
            f"{part.duplicates:,} exact\n{part.near_duplicates:,} near",
            "" if part.prompts_in_train is None else f"{part.prompts_in_train:,}",
        )
    return table


def _comparisons(report: DataReport) -> Table:
    table = _table(
        "Comparisons",
        *("source", "split", "completions: comparisons", "tied pairs", "all tied"),
        *("longer wins", "labels agree"),
    )
    for part in report.parts:
        if part.comparisons:
            _row(table, part.source, part.split, *_cells(part.comparisons))
    return table


def _cells(counts: ComparisonCounts) -> tuple[str, ...]:
    alike = share(counts.alike, counts.labels)
    return (
        "  ".join(f"{k}: {n:,}" for k, n in sorted(counts.completions.items())),
        percent(share(counts.tied, counts.ranked_pairs)),
        f"{counts.all_tied:,}",
        percent(share(counts.longer, counts.longer + counts.shorter)),
        "one label each" if alike is None else f"{percent(alike)} of {counts.labels:,}",
    )


def _read(part: Part) -> str:
    return f"{part.read:,} of endless" if part.size is None else f"{part.read:,}"


def _lengths(lengths: Lengths) -> str:
    if not lengths.count:
        return "none"
    return f"{lengths.quantile(0.5)} {lengths.quantile(0.95)} {lengths.quantile(1.0)}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*(Text(cell) for cell in cells))  # brackets in a name are no markup
