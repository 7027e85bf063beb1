from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader

from rlhf_lightning.callbacks.metrics_csv import MetricsCSV
from rlhf_lightning.callbacks.samples import COLUMNS, SampleTables, token_rows
from rlhf_lightning.callbacks.showing import markdown_table
from tests.callbacks.toy import Rows, Toy, sample, trainer


def test_the_table_keeps_its_shape_whatever_the_text_holds() -> None:
    lines = markdown_table([sample(1), {"prompt": "p", "response": "r"}], COLUMNS).splitlines()
    assert lines[0] == "| prompt | response | score | gold | kl_k1 |"
    said = "user&#58; a&#124;b<br>&#60;b&#62;1&#60;&#47;b&#62;"
    assert lines[2] == f"| {said} | yes it is | 1.250 | 0.500 | 0.750 |"
    assert lines[3] == "| p | r |  |  |  |"


def test_token_rows_are_those_that_the_sample_has() -> None:
    row = sample(1) | {"token_value": None}
    assert list(token_rows(row)) == ["kl_k1", "advantage"]


def test_samples_are_written_after_each_validation_and_not_in_the_sanity_check(
    tmp_path: Path,
) -> None:
    tables = SampleTables(tmp_path / "samples.jsonl")
    run = trainer(
        tmp_path,
        [tables],
        [MetricsCSV(tmp_path / "m.csv")],
        max_epochs=1,
        val_check_interval=2,
        num_sanity_val_steps=1,
    )
    run.fit(Toy(), Rows(5), DataLoader([0, 1]))
    rows = [json.loads(line) for line in tables.path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert rows[0]["response"] == "yes it is"


def test_a_resumed_run_forgets_later_samples_and_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    # U+2028 and U+0085 end a line for some readers, and a model may say them
    kept = '{"step": 1, "response": "a\u2028b\u0085c"}\n{"step": 2}\n'
    path.write_text(kept + '{"step": 3}\n{"st', encoding="utf-8")
    SampleTables(path).drop_after(2)
    assert path.read_text(encoding="utf-8") == kept


def test_a_module_without_samples_is_left_alone(tmp_path: Path) -> None:
    class Silent(Toy):
        def validation_step(self, batch: object, batch_idx: int) -> None:
            pass

    run = trainer(
        tmp_path, [SampleTables(tmp_path / "samples.jsonl")], max_epochs=1, val_check_interval=2
    )
    run.fit(Silent(), Rows(2), DataLoader([0]))
    assert not (tmp_path / "samples.jsonl").exists()


class Board(Logger):
    """A logger of other making: tables and images, and no `experiment` to write to."""

    name, version = "board", ""  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[tuple[str, list[str], list[list[Any]], int]] = []
        self.images: list[tuple[str, list[Any], int]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int) -> None:
        self.tables.append((key, columns, data, step))

    def log_image(self, key: str, images: list[Any], step: int) -> None:
        self.images.append((key, images, step))


def test_a_logger_with_tables_and_images_gets_them(tmp_path: Path) -> None:
    board = Board()
    tables = SampleTables(tmp_path / "samples.jsonl")
    run = trainer(tmp_path, [tables], [board], max_epochs=1, val_check_interval=2)
    run.fit(Toy(), Rows(2), DataLoader([0]))
    columns = ["prompt", "response", "score", "gold", "kl_k1"]
    row = ["user: a|b\n<b>2</b>", "yes it is", 1.25, 0.5, 0.75]
    assert board.tables == [("samples", columns, [row], 2)]
    ((key, (figure,), step),) = board.images
    assert (key, step) == ("tokens/prompt_0", 2)
    assert len(figure.axes) == 3  # KL, value and advantage of each token
