"""The Lightning strategy of the settings."""

from __future__ import annotations

from typing import Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only

from rlhf_lightning.config import StrategyConfig


def trainer_options(settings: StrategyConfig, *, grad_clip: float) -> dict[str, Any]:
    """What the Trainer gets besides its own keys.

    `grad_clip` is for strategies that clip by themselves.
    """
    if settings.name == "single":
        # whatever job it is in, it is alone: Lightning would take a task of srun for a rank, and log in the first alone
        rank_zero_only.rank = 0  # pyright: ignore[reportFunctionMemberAccess]
        return {"plugins": [LightningEnvironment()]}
    # the processes are there already, and are told who they are as torchrun does it
    return {"strategy": _strategy(settings, grad_clip), "plugins": [TorchElasticEnvironment()]}


def _strategy(settings: StrategyConfig, grad_clip: float) -> Any:
    if settings.name == "ddp":
        from rlhf_lightning.strategies.data_parallel import DataParallel

        return DataParallel()
    if settings.name == "fsdp2":
        from rlhf_lightning.strategies.sharded import Sharded

        return Sharded(offload=settings.offload)
    from rlhf_lightning.strategies.deepspeed import ZeRO

    stage = {"deepspeed_zero2": 2, "deepspeed_zero3": 3}[settings.name]
    return ZeRO(stage, offload=settings.offload, grad_clip=grad_clip)
