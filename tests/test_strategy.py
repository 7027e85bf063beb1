"""`strategy=...`: what is refused before anything is loaded, and what a run counts as."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer

from rlhf_lightning import binding, compose
from rlhf_lightning.config import RootConfig, StrategyConfig
from rlhf_lightning.data.mixture import Mixture
from rlhf_lightning.errors import UserError
from rlhf_lightning.plan import Planner
from rlhf_lightning.runs import run_hash
from rlhf_lightning.strategies.build import trainer_options


def root(*overrides: str) -> RootConfig:
    return compose.check(compose.compose(["experiment=debug", *overrides]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.devices=2"], "trainer.devices must be 1, or a list of one device, where"),
        (["trainer.num_nodes=2"], "trainer.num_nodes must be 1 where strategy=single, got 2"),
        (["strategy.offload=true"], "strategy.offload must be false where strategy.name is single"),
        (
            ["strategy=ddp", "strategy.offload=true"],
            "strategy.offload must be false where strategy.name is ddp",
        ),
        (["strategy.name=fsdp"], "strategy.name must be one of single, ddp, fsdp2"),
        (["strategy=ddp", "trainer.devices=auto"], "trainer.devices must be a number of processes"),
        (
            ["strategy=ddp", "trainer.devices=3"],
            "pretrain.global_batch_size must be a multiple of the 3 processes",
        ),
        (
            ["strategy=ddp", "trainer.devices=2", "ppo.minibatch_size=1"],
            "ppo.minibatch_size must be a multiple of the 2 processes",
        ),
        (
            ["strategy=deepspeed_zero2", "trainer.precision=bf16-mixed"],
            "trainer.precision must be 32-true where strategy=deepspeed_zero2",
        ),
        (
            ["strategy=deepspeed_zero3", "ppo.ema_decay=0.9"],
            "ppo.ema_decay must be null where strategy=deepspeed_zero3",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        root(*overrides)
    assert str(error.value).startswith(message)


def test_deepspeed_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[deepspeed\]'"):
        binding.require_strategy_package(root("strategy=deepspeed_zero3").strategy)
    binding.require_strategy_package(root("strategy=fsdp2").strategy)


def hash_of(*overrides: str) -> str:
    settings = root("task=sft", *overrides)
    planner = Planner(settings, Mixture(settings.mix, settings.seed).identity(), None)
    return run_hash(planner.stage("sft").identity)


def test_a_run_counts_by_its_processes_and_not_by_how_weights_are_spread(tmp_path: Path) -> None:
    two = ["trainer.devices=2"]
    alone, ddp = hash_of(), hash_of("strategy=ddp", *two)
    assert ddp == hash_of("strategy=fsdp2", *two) != alone
    assert alone == hash_of("strategy=ddp")  # one process computes what one process computes


def test_one_process_is_alone_whatever_job_it_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a task of srun Lightning took it for a rank: it refused the job's size, or logged nothing."""
    for name, value in {"NTASKS": "8", "JOB_NAME": "dev", "PROCID": "3", "JOB_ID": "7"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(rank_zero_only, "rank", 3)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        **trainer_options(StrategyConfig(), grad_clip=1.0),
    )
    assert rank_zero_only.rank == 0 and trainer.is_global_zero and trainer.world_size == 1
