"""Weights spread over processes with PyTorch's `fully_shard`: layer by layer, gathered while a layer computes."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from rlhf_lightning.models.adapters import BACKBONE_CALL, TrunkScorer, backbone
from rlhf_lightning.processes import world_size

_meshes: dict[str, DeviceMesh] = {}


def shard_all(module: nn.Module, device: torch.device, *, offload: bool) -> None:
    """Spread the weights of every transformers model in `module` over the processes, in place; move what is left.

    A model of other making that scores texts (`reward_source.parts.NAME.path`) is one of these too.
    """
    mesh = _meshes.setdefault(device.type, init_device_mesh(device.type, (world_size(),)))
    policy = CPUOffloadPolicy() if offload and device.type != "cpu" else OffloadPolicy()
    options: dict[str, Any] = {"mesh": mesh, "offload_policy": policy}
    for part in list(module.modules()):
        if isinstance(part, PreTrainedModel) and not _inside_another(part, module):
            _shard_model(part, options)
        elif isinstance(part, TrunkScorer) and not isinstance(part.score, FSDPModule):
            _shard(part.score, options)
    for part in module.modules():  # buffers, and parameters that no transformers model has
        for tensor in part._parameters.values():
            if tensor is not None and not isinstance(tensor, DTensor):
                tensor.data = tensor.data.to(device)
        for name, tensor in part._buffers.items():
            if tensor is not None:
                part._buffers[name] = tensor.to(device)


def _inside_another(part: PreTrainedModel, module: nn.Module) -> bool:
    """Whether it is the backbone of a model that is sharded as a whole."""
    others = (m for m in module.modules() if isinstance(m, PreTrainedModel) and m is not part)
    return any(inner is part for other in others for inner in other.modules())


def _shard_model(model: PreTrainedModel, options: dict[str, Any]) -> None:
    head = getattr(model, "score", None)
    scorer = isinstance(head, nn.Module)
    if isinstance(backbone(model) if scorer else model, FSDPModule):
        return
    # None in some architectures: then it is one group, gathered whole
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for part in list(model.modules()):
        if type(part).__name__ in layers:
            _shard(part, options)
    if isinstance(head, nn.Module):  # a scorer is called in two parts: its backbone, then its head
        _shard(backbone(model), options)
        _shard(head, options)
    else:
        _shard(model, options)

        def call_backbone(**inputs: Any) -> Any:
            return backbone(model)(**inputs)

        setattr(model, BACKBONE_CALL, call_backbone)
        # hooks of the whole gather what is outside of the layers, also where only the backbone runs
        register_fsdp_forward_method(model, BACKBONE_CALL)


def _shard(module: nn.Module, options: dict[str, Any]) -> None:
    # resharded always: weights that stay gathered in a rollout would be old ones after the next change
    fully_shard(module, reshard_after_forward=True, **options)


def gathered(parameter: Tensor, *, keep: bool) -> Tensor:
    """All of a weight, on the host where it is kept (else empty). All processes take part."""
    if isinstance(parameter, DTensor):
        full = cast("DTensor", parameter.detach()).full_tensor()
    elif hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], enabled=True):
            full = parameter.detach().clone()
    else:
        full = parameter.detach()
    return full.cpu() if keep else torch.empty(0)


def without_hooks(model: nn.Module) -> None:
    """A model whose weights are whole again: its classes are those of transformers."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.__class__ = type(module).__bases__[1]


def local(tensor: Any) -> Any:
    """This process's part of a tensor; anything else as it is."""
    if isinstance(tensor, DTensor):
        return tensor.to_local().detach()
    return tensor.ds_tensor.detach() if hasattr(tensor, "ds_tensor") else tensor


def local_state(module: nn.Module) -> dict[str, Any]:
    """`state_dict` with this process's parts."""
    names = dict(module.named_parameters(remove_duplicate=False))
    return {name: local(names.get(name, value)) for name, value in module.state_dict().items()}


@torch.no_grad()
def load_local_state(module: nn.Module, state: dict[str, Any]) -> None:
    """Put parts back that `local_state` gave; names that `state` lacks stay as they are."""
    there: dict[str, Any] = dict(module.named_parameters(remove_duplicate=False))
    there |= dict(module.named_buffers(remove_duplicate=False))
    for name, value in state.items():
        local(there[name]).copy_(value)
