from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from rlhf_lightning.callbacks.checkpointing import Checkpointing, find_checkpoint
from rlhf_lightning.callbacks.log import closing, flatten, log_hparams, log_metrics
from rlhf_lightning.callbacks.samples import SampleTables
from tests.callbacks.toy import Rows, Toy, trainer


def fit(folder: Path, *, die_at: int | None = None) -> TensorBoardLogger:
    module = Toy(die_at=die_at)
    board = TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False)
    callbacks = [SampleTables(folder / "samples.jsonl", figures=1), Checkpointing(folder, every=2)]
    run = trainer(folder, callbacks, [board], max_epochs=1)
    found = find_checkpoint(folder)
    run.fit(
        module, Rows(5), DataLoader([0, 1]), ckpt_path=found, weights_only=True if found else None
    )
    return board


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    folder = tmp_path_factory.mktemp("board")
    with pytest.raises(RuntimeError, match="killed"):
        fit(folder, die_at=4)  # step 3 was logged, the checkpoint is of step 2
    board = fit(folder)
    log_hparams(
        [board], {"ppo": {"kl_coef": 0.05}, "seed": 0}, {"ppo/gold_score": 0.8, "odd": float("nan")}
    )
    return EventAccumulator(str(folder / "tensorboard")).Reload()


def test_scalars_have_the_stages_steps_and_no_step_twice_after_a_resume(
    events: EventAccumulator,
) -> None:
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5]
    assert [event.step for event in events.Scalars("val/score")] == [3]


def test_sample_tables_and_heat_strips_are_shown(events: EventAccumulator) -> None:
    assert "samples/text_summary" in events.Tags()["tensors"]
    assert events.Tags()["images"] == ["tokens/prompt_0"]


def test_hparams_stand_beside_the_final_numbers(events: EventAccumulator) -> None:
    assert events.Scalars("final/ppo/gold_score")[0].value == pytest.approx(0.8)
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"ppo.kl_coef" in content
    assert "final/odd" not in events.Tags()["scalars"]


def test_flattened_config_has_dotted_keys_and_plain_values() -> None:
    config = {
        "ppo": {"kl_coef": 0.05, "ptx": {"enabled": False}},
        "seed": 0,
        "x": None,
        "l": [1, 2],
    }
    assert flatten(config) == {
        "ppo.kl_coef": 0.05,
        "ppo.ptx.enabled": False,
        "seed": 0,
        "x": "None",
        "l": "[1, 2]",
    }


def test_tensors_are_accepted_as_numbers(tmp_path: Path) -> None:
    class Recorder:
        seen: dict[str, float]

        def on_metrics(self, metrics: dict[str, float], step: int) -> None:
            self.seen = metrics

    class Module:
        class trainer:  # noqa: N801
            loggers = ()
            callbacks = (Recorder(),)
            callback_metrics: dict[str, torch.Tensor] = {}  # noqa: RUF012

    log_metrics(Module(), {"a": torch.tensor(2.0)}, 1)  # type: ignore[arg-type]
    assert Module.trainer.callbacks[0].seen == {"a": 2.0}


def test_early_stopping_finds_what_it_monitors(tmp_path: Path) -> None:
    module = Toy()
    stopping = EarlyStopping(monitor="val/score", mode="max", stopping_threshold=-1.0)
    trainer(tmp_path, [stopping], max_epochs=1).fit(module, Rows(5), DataLoader([0, 1]))
    assert module.validated == [3]
    assert module.iteration == 3


class Run:
    """What Weights & Biases keeps open for the process."""

    ended_with: int | None = None

    def finish(self, exit_code: int) -> None:
        self.ended_with = exit_code


class Board(CSVLogger):
    _experiment: Any


@pytest.mark.parametrize(("fails", "code"), [(False, 0), (True, 1)])
def test_what_a_logger_keeps_open_ends_with_the_stage(
    tmp_path: Path, fails: bool, code: int
) -> None:
    used, unused = Board(tmp_path), Board(tmp_path)
    used._experiment, unused._experiment = run, _ = Run(), None
    used.finalize = unused.finalize = lambda status: None  # type: ignore[method-assign]
    with suppress(RuntimeError), closing([used, unused]):
        assert run.ended_with is None
        if fails:
            raise RuntimeError("killed")
    assert run.ended_with == code
    assert unused._experiment is None  # no run is made only to be ended


def test_any_logger_gets_the_config_and_the_finite_final_numbers() -> None:
    class Recorder(CSVLogger):
        def log_hyperparams(self, params: Any = None) -> None:
            self.params = params

        def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
            self.numbers = metrics

    board = Recorder("")
    log_hparams([board], {"ppo": {"kl_coef": 0.05}}, {"ppo/gold_score": 0.8, "odd": float("nan")})
    assert board.params == {"ppo.kl_coef": 0.05}
    assert board.numbers == {"final/ppo/gold_score": 0.8}
