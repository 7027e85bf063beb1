from __future__ import annotations

import json
from pathlib import Path

from torch.utils.data import DataLoader

from rlhf_lightning.callbacks.metrics_csv import MetricsCSV
from rlhf_lightning.callbacks.samples import SampleTables, markdown_table, token_rows
from tests.callbacks.toy import Rows, Toy, sample, trainer


def test_the_table_keeps_its_shape_whatever_the_text_holds() -> None:
    lines = markdown_table([sample(1), {"prompt": "p", "response": "r"}]).splitlines()
    assert lines[0] == "| prompt | response | score | gold | kl_k1 |"
    assert lines[2] == "| user: a\\|b<br>&lt;b>1&lt;/b> | yes it is | 1.250 | 0.500 | 0.750 |"
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
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    SampleTables(path).drop_after(2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_module_without_samples_is_left_alone(tmp_path: Path) -> None:
    class Silent(Toy):
        def validation_step(self, batch: object, batch_idx: int) -> None:
            pass

    run = trainer(
        tmp_path, [SampleTables(tmp_path / "samples.jsonl")], max_epochs=1, val_check_interval=2
    )
    run.fit(Silent(), Rows(2), DataLoader([0]))
    assert not (tmp_path / "samples.jsonl").exists()
