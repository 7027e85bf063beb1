from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_lightning.callbacks.metrics_csv import MetricsCSV
from rlhf_lightning.runs.curves import read_metrics


def test_rows_are_on_disk_at_once_and_new_columns_may_come_later(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.csv"
    log = MetricsCSV(path)
    log.log_metrics({"loss": 0.5}, 1)
    log.log_metrics({"loss": 0.25}, 2)
    assert path.read_text() == "step,loss\n1,0.5\n2,0.25\n"
    log.log_metrics({"val/score": 1.0}, 2)
    log.log_metrics({"loss": 0.125}, 3)
    assert path.read_text() == "step,loss,val/score\n1,0.5,\n2,0.25,\n2,,1.0\n3,0.125,\n"
    assert [p.name for p in path.parent.iterdir()] == ["metrics.csv"]


def test_a_resumed_run_forgets_later_rows_and_a_row_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,val\n1,0.5,\n2,0.25,1.0\n3,0.125,\n4,0.0")
    log = MetricsCSV(path)
    log.drop_after(2)
    log.log_metrics({"loss": 0.75}, 3)
    assert path.read_text() == "step,loss,val\n1,0.5,\n2,0.25,1.0\n3,0.75,\n"


def test_a_new_logger_goes_on_with_an_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    MetricsCSV(path).log_metrics({"a": 1.0}, 1)
    path.write_text(path.read_text() + "2,0.")
    MetricsCSV(path).log_metrics({"b": 2.0}, 2)
    assert path.read_text() == "step,a,b\n1,1.0,\n2,,2.0\n"


def test_numbers_come_back_exactly(tmp_path: Path) -> None:
    log = MetricsCSV(tmp_path / "m.csv")
    values = [0.1 + 0.2, 1e-300, float("inf"), 12345678.9]
    for step, value in enumerate(values):
        log.log_metrics({"with,comma": value}, step)
    assert [v for _, v in read_metrics(log.path)["with,comma"]] == values


def test_a_row_needs_a_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step must be an integer, got None"):
        MetricsCSV(tmp_path / "m.csv").log_metrics({"a": 1.0})
