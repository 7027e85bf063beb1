"""deepspeed_zero2 and deepspeed_zero3, on DeepSpeed's engine.

DeepSpeed expects one forward and one backward pass a step. A PPO step has many, so its accumulation is left to the
calls (`managed_gradient_accumulation: false`): every backward reduces, `step` ends the window.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.strategy import _ForwardRedirection
from torch import Tensor, nn

from rlhf_lightning.errors import RunFailed
from rlhf_lightning.processes import is_first, world_size
from rlhf_lightning.strategies.sharded import PartsOnDisk
from rlhf_lightning.strategies.sharding import load_local_state, shard_all

PERSISTENT = 100_000
"""ZeRO-3 keeps weights of fewer numbers whole (DeepSpeed's default), or those below 1 % of the largest one's."""


class ZeRO(PartsOnDisk):
    """ZeRO stage 2 or 3."""

    def __init__(self, stage: int, *, offload: bool, grad_clip: float) -> None:
        super().__init__()
        self.stage, self.offload, self.grad_clip = stage, offload, grad_clip
        self.name = f"deepspeed_zero{stage}"
        self._engine: Any = None
        self._forward_redirection = _ForwardRedirection()

    @property
    def zero(self) -> Any:
        """DeepSpeed's optimizer around ours."""
        return self._engine.optimizer

    def setup(self, trainer: Trainer) -> None:
        """Make the engine once; validation before and after training uses the same."""
        assert self.accelerator is not None
        assert self.lightning_module is not None
        self.accelerator.setup(trainer)
        self.lightning_module._device = self.root_device
        if self._engine is None:
            self.precision_plugin.convert_module(self.lightning_module)
            self._engine = self._make_engine()
        # ours, whose groups have the learning rates; `optimizer_step` is DeepSpeed's
        self.optimizers, self.lr_scheduler_configs = [self.zero.optimizer], []
        if self.stage == 3:  # the hooks of the whole module tell ZeRO where a step begins
            self.model = self._engine
        self.setup_precision_plugin()

    def _make_engine(self) -> Any:
        module: Any = self.lightning_module
        if self.root_device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # 2026-11, deepspeed 0.19.8 with torch 2.13: two collectives by their old names, at every call
        warnings.filterwarnings("ignore", message=r".*_into_tensor` is deprecated")
        warnings.filterwarnings("ignore", message=r".*reduce_scatter_tensor` is deprecated")
        deepspeed.init_distributed(dist_init_required=False, verbose=False)
        config = self._config()
        if self.stage == 3:  # weight by weight: no device ever holds the whole model
            if config["bf16"]["enabled"]:  # of what is trained; stage 2 sees to it itself
                _to_bfloat16(p for p in module.parameters() if p.requires_grad)
            deepspeed.zero.Init(module=module, config_dict_or_path=config)
        else:
            nn.Module.to(module, self.root_device)
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=module.configure_optimizers(),
            config=config,
            dist_init_required=False,
        )
        return engine

    def _config(self) -> dict[str, Any]:
        weights = list(self.lightning_module.parameters())  # type: ignore[union-attr]
        largest = max(p.numel() for p in weights)
        zero: dict[str, Any] = {"stage": self.stage, "overlap_comm": False}
        if self.stage == 3:
            zero["stage3_param_persistence_threshold"] = min(PERSISTENT, largest // 100)
        if self.offload:
            zero["offload_optimizer"] = {"device": "cpu"}
            if self.stage == 3:
                zero["offload_param"] = {"device": "cpu"}
        half = any(p.dtype == torch.bfloat16 and p.requires_grad for p in weights)
        return {
            "train_micro_batch_size_per_gpu": 1,  # a number that DeepSpeed wants to know
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": False,
            "gradient_clipping": self.grad_clip,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero,
            "bf16": {"enabled": half},
            "steps_per_print": 10**9,
        }

    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        zero = self.zero
        # what the engine does where each backward pass has a forward pass of the whole module before it
        zero.clear_backward_seen_flag()
        zero.set_gradient_accumulation_boundary(False)  # `step` is the boundary
        if self.stage == 3:
            # always added to buffers that are cleared after each step: a weight that the step's first backward pass
            # does not reach would else keep what it had in the step before
            zero.micro_step_id = 1
        # DeepSpeed takes the mean over processes; losses are divided by the counts of the global batch
        return self._engine.backward(closure_loss * world_size(), scale_wrt_gas=False)

    def optimizer_step(self, optimizer: Any, closure: Any, model: Any = None, **kwargs: Any) -> Any:
        self._engine.step()

    def clip_and_step(
        self, optimizer: Any, parameters: Iterable[nn.Parameter], limit: float
    ) -> float:
        """DeepSpeed's step, which clips; returns the norm before clipping.

        Raises: RunFailed where it is not finite. The weights are lost then, but for the last checkpoint.
        """
        optimizer.step()
        self._clear()
        norm = float(self._engine.get_global_grad_norm())
        if not torch.isfinite(torch.tensor(norm)):
            raise RunFailed(f"the gradient norm is {norm}; the last good checkpoint is kept")
        return norm

    def discard_gradients(self, optimizer: Any) -> None:
        zero = self.zero
        if self.stage == 2:
            zero.all_grad_tensors = dict.fromkeys(zero.all_grad_tensors)
            zero.averaged_gradients = {}
        zero.zero_grad()
        self._clear()

    def _clear(self) -> None:
        if self.stage == 3:
            buffers = self.zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition
            for buffer in buffers.values():
                buffer.zero_()
        elif self.offload:
            # on the host, where the next step's are added to them: what a step did not use, and what it did
            for buffer in self.zero.accumulated_grads_in_cpu.values():
                buffer.zero_()
            self.zero._offload_accumulated_param_ids = set()
            self.zero.norm_for_param_grads = {}

    def place_frozen(self, model: nn.Module, device: torch.device) -> None:
        """Under ZeRO-3 a model that is not trained is spread as with fsdp2: DeepSpeed has nothing to do with it."""
        if self.stage == 3:
            shard_all(model, device, offload=self.offload)
        else:
            nn.Module.to(model, device)

    def teardown(self) -> None:
        """Nothing moves: parts lie where their processes compute."""

    # checkpoints: each process saves its parts of weights and optimizer

    def lightning_module_state_dict(self) -> dict[str, Any]:
        if self.stage == 2 and not is_first():
            return {}  # the first process has all of them
        return super().lightning_module_state_dict()

    def frozen_state(self, model: nn.Module) -> dict[str, Any]:
        # stage 2 alone has such a model: it is whole in each process
        return super().frozen_state(model) if is_first() else {}

    def load_frozen(self, model: nn.Module, state: dict[str, Any]) -> None:
        """All of it from the first process, which alone has kept it."""
        super().load_frozen(model, state)
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        state = self.zero.optimizer.state
        return {"parts": self._parts(), "states": [dict(state[part]) for part in self._parts()]}

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        checkpoint = super().load_checkpoint(checkpoint_path)
        if self.stage == 2 and not is_first():
            first = Path(checkpoint_path) / f"{self.name}-rank-0.ckpt"
            weights = torch.load(first, map_location="cpu", weights_only=True, mmap=True)
            checkpoint["state_dict"] = weights["state_dict"]
        return checkpoint

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        load_local_state(self.lightning_module, checkpoint["state_dict"])

    @torch.no_grad()
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        (saved,) = checkpoint["optimizer_states"]
        for part, number, state in zip(self._parts(), saved["parts"], saved["states"], strict=True):
            part.copy_(number)
            own = self.zero.optimizer.state[part]
            for name, value in state.items():
                own[name] = value.to(part.device) if isinstance(value, Tensor) else value

    def _parts(self) -> list[Tensor]:
        """The fp32 numbers that this process's optimizer changes."""
        zero = self.zero
        return list(
            zero.single_partition_of_fp32_groups
            if self.stage == 2
            else zero.fp32_partitioned_groups_flat
        )


def _to_bfloat16(parameters: Iterable[nn.Parameter]) -> None:
    """One kind of numbers: beside a backbone in half precision a head is fp32. The engine keeps fp32 copies of all."""
    for parameter in parameters:
        parameter.data = parameter.data.bfloat16()
