from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from torch.utils.data import DataLoader

from rlhf_lightning.callbacks.progress import NUMBERS, StageProgress, counted
from tests.callbacks.toy import Rows, Toy, trainer


def run(folder: Path, *, terminal: bool, batches: int = 20, die_at: int | None = None) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    progress = StageProgress("sft", console=console)
    fit = trainer(
        folder, [progress], max_epochs=1, enable_progress_bar=True, val_check_interval=batches
    )
    fit.fit(Toy(die_at=die_at), Rows(batches), DataLoader([0]))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_a_run_prints_ten_plain_lines(tmp_path: Path) -> None:
    lines = run(tmp_path, terminal=False).splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("sft       2/20")
    assert lines[-1].startswith("sft      20/20")
    assert all("loss " in line for line in lines)
    assert "\x1b" not in "".join(lines)


def test_a_short_run_prints_a_line_for_each_batch(tmp_path: Path) -> None:
    assert len(run(tmp_path, terminal=False, batches=3).splitlines()) == 3


def test_on_a_terminal_there_is_a_bar_with_the_numbers(tmp_path: Path) -> None:
    text = run(tmp_path, terminal=True)
    assert "20/20" in text
    assert "loss" in text


def test_an_error_gives_the_terminal_back(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    fit = trainer(
        tmp_path, [StageProgress("sft", console=console)], max_epochs=1, enable_progress_bar=True
    )
    with pytest.raises(RuntimeError, match="killed"):
        fit.fit(Toy(die_at=2), Rows(5), DataLoader([0]))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().rfind("\x1b[?25h") > console.file.getvalue().rfind(
        "\x1b[?25l"
    )  # the cursor shows


def test_numbers_are_found_under_a_stage_prefix() -> None:
    progress = StageProgress("ppo")
    progress.on_metrics({"ppo/rollout/score": 1.0, "time/tokens_per_s": 6912.4, "other": 3.0}, 1)
    assert progress._text() == "score 1  tokens/s 6,912"
    assert set(NUMBERS) == {"pretrain", "sft", "reward", "ppo"}


def count(*, terminal: bool, every_s: float = 0.0, total: int = 20) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with counted("evaluate", total, console, every_s=every_s) as done:
        for _ in range(total):
            done(1)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_work_without_a_trainer_is_counted_in_ten_lines_or_a_bar() -> None:
    lines = count(terminal=False).splitlines()
    assert [line.split()[1] for line in lines] == [f"{n}/20" for n in range(2, 21, 2)]
    shown = count(terminal=True)
    assert "20/20" in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")  # the cursor shows


def test_work_that_is_soon_over_prints_no_line_where_there_is_no_terminal() -> None:
    assert count(terminal=False, every_s=60) == ""
    assert count(terminal=True, total=0) == ""
