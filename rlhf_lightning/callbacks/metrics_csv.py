"""metrics.csv: every scalar over time, in one file that any tool reads."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from rlhf_lightning.runs.curves import read_rows
from rlhf_lightning.runs.files import write_text


class MetricsCSV(Logger):
    """`step` and one column for each metric; one row for each call, empty where a metric was not logged.

    A row is appended and flushed at once. A metric that was not seen before rewrites the file under a temporary name.
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> Path:
        return self.path

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if step is None:
            raise ValueError("step must be an integer, got None")
        row = {"step": str(step), **{name: repr(float(value)) for name, value in metrics.items()}}
        if self._columns is None:
            self._columns = self._open()
        missing = [name for name in row if name not in self._columns]
        if missing:
            self._columns += missing
            self._rewrite([*self._rows(), row])
        else:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(_lines([row], self._columns))

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing: the run's config is in .hydra/."""

    @rank_zero_only
    def drop_after(self, step: int) -> None:
        """Forget rows past `step` (they are about to be made again)."""
        self._columns = self._open()
        self._rewrite([row for row in self._rows() if int(row["step"]) <= step])

    def _open(self) -> list[str]:
        """Columns of the file, which is made if it is not there and mended if a kill cut its last row."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._columns = read_rows(self.path)[0] if self.path.exists() else ["step"]
        self._rewrite(self._rows())
        return self._columns

    def _rows(self) -> list[dict[str, str]]:
        return read_rows(self.path)[1] if self.path.exists() else []

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        assert self._columns is not None
        header = {name: name for name in self._columns}
        write_text(self.path, _lines([header, *rows], self._columns))


def _lines(rows: list[dict[str, str]], columns: list[str]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", lineterminator="\n").writerows(rows)
    return text.getvalue()
