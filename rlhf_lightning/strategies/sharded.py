"""fsdp2: weights, gradients and optimizer states spread over the processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlhf_lightning.processes import all_sum, rank, step_if_finite, world_size
from rlhf_lightning.runs.files import sync
from rlhf_lightning.strategies.data_parallel import DataParallel
from rlhf_lightning.strategies.sharding import load_local_state, local, local_state, shard_all


class PartsOnDisk(DataParallel):
    """A strategy whose processes each save what they hold: a checkpoint is a folder of `NAME-rank-R.ckpt`."""

    name = ""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True  # parts go into parts

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return local_state(self.lightning_module)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        load_local_state(self.lightning_module, checkpoint["state_dict"])

    def frozen_state(self, model: nn.Module) -> dict[str, Any]:
        """This process's parts."""
        return local_state(model)

    def load_frozen(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Put this process's parts back, where they lie in training."""
        self.place_frozen(model, self.root_device)
        load_local_state(model, state)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        Path(filepath).mkdir(parents=True, exist_ok=True)
        torch.save(_local_tree(checkpoint), self._own(filepath))
        sync(self._own(filepath))  # this machine's own writes; the first process's are not

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return torch.load(self._own(checkpoint_path), map_location="cpu", weights_only=True)

    def _own(self, folder: str | Path) -> Path:
        return Path(folder) / f"{self.name}-rank-{rank()}.ckpt"


def _local_tree(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _local_tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_local_tree(item) for item in value)
    # a copy: a part may be a view of a larger buffer, which would be saved with it; on the host, which has room
    return local(value).to("cpu", copy=True) if isinstance(value, torch.Tensor) else value


class Sharded(PartsOnDisk):
    """PyTorch's `fully_shard` (FSDP2)."""

    name = "fsdp2"

    def __init__(self, *, offload: bool) -> None:
        super().__init__()
        self.offload = offload

    def setup(self, trainer: Trainer) -> None:
        """Shard the module's models once, then make the optimizer for the parts."""
        assert self.accelerator is not None
        assert self.model is not None
        self.accelerator.setup(trainer)
        self.precision_plugin.convert_module(self.model)
        shard_all(self.model, self.root_device, offload=self.offload)
        assert self.lightning_module is not None
        self.lightning_module._device = self.root_device
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def teardown(self) -> None:
        """Nothing moves: parts lie where their processes compute."""

    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # fully_shard takes the mean over processes; losses are divided by the counts of the global batch
        return super().backward(closure_loss * world_size(), *args, **kwargs)

    def clip_and_step(
        self, optimizer: Any, parameters: Iterable[nn.Parameter], limit: float
    ) -> float:
        """As `DataParallel`'s; the gradients are summed already, and each process holds parts of them."""
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        squares = [g.float().square().sum() for g in gradients]
        norm = float(all_sum(torch.stack(squares).sum()).sqrt()) if squares else 0.0
        if norm > limit:
            for gradient in gradients:
                gradient.mul_(limit / (norm + 1e-6))
        return step_if_finite(optimizer, norm)

    def place_frozen(self, model: nn.Module, device: torch.device) -> None:
        """Spread the weights of a model that is not trained, too."""
        shard_all(model, device, offload=self.offload)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        # no states where the run was stopped before it had taken a step
        states = checkpoint["optimizer_states"]
        for optimizer, saved in zip(self.optimizers, states, strict=bool(states)):
            optimizer.load_state_dict(saved)
            for parameter, state in optimizer.state.items():
                assert isinstance(parameter, DTensor)
                for key, value in state.items():
                    if value.dim() and not isinstance(value, DTensor):
                        state[key] = _part_like(parameter, value)


def _part_like(parameter: DTensor, value: torch.Tensor) -> DTensor:
    """A part as the distributed tensor that it is of."""
    return DTensor.from_local(
        value.to(parameter.to_local().device),
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
