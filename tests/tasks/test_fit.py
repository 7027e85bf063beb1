"""What a stage says and refuses before it trains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.fit import _say_what_rounding_takes, _trainer
from rlhf_lightning.tasks.job import device_for


@pytest.mark.parametrize(
    ("dtype", "frozen", "strategy", "said"),
    [
        (torch.bfloat16, False, "single", 1),
        (torch.bfloat16, False, "deepspeed_zero2", 0),
        (torch.bfloat16, True, "single", 0),
        (torch.float32, False, "single", 0),
    ],
)
def test_training_weights_in_half_precision_is_told(
    dtype: torch.dtype, frozen: bool, strategy: str, said: int
) -> None:
    lines: list[str] = []
    root = SimpleNamespace(strategy=SimpleNamespace(name=strategy))
    job: Any = SimpleNamespace(root=root, say=lines.append)
    module: Any = torch.nn.Linear(2, 2).to(dtype).requires_grad_(not frozen)
    _say_what_rounding_takes(job, module)
    assert len(lines) == said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused() -> None:
    assert device_for({"accelerator": "auto"}) == device_for(None) == torch.device("cpu")
    with pytest.raises(UserError, match=r"^trainer.accelerator must be auto or cpu .*, got gpu$"):
        device_for({"accelerator": "gpu"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_job_that_got_gpus_does_not_train_on_the_cpu_without_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_JOB_GPUS", "0,1")
    with pytest.raises(UserError, match=r"^trainer.accelerator must be cpu .* GPUs \(0,1\)$"):
        device_for({"accelerator": "auto"})
    assert device_for({"accelerator": "cpu"}) == torch.device("cpu")


def test_what_the_trainer_refuses_is_one_line() -> None:
    with pytest.raises(
        UserError, match=r"^trainer must be what Lightning takes, got: .*`profiler`"
    ):
        _trainer(profiler="nonsense", accelerator="cpu", logger=False)
    with pytest.raises(UserError, match=r"^trainer must be what Lightning takes, got: .*devices"):
        _trainer(devices=[1], accelerator="cpu", logger=False)
