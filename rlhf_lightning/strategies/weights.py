"""Models outside of a Trainer: where a frozen one lies, and how one that is spread becomes whole again."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from rlhf_lightning.config import StrategyConfig
from rlhf_lightning.processes import is_first, is_sharded


def place_frozen(model: nn.Module, settings: StrategyConfig, device: torch.device) -> None:
    """Put a model that is not trained on the device, its weights spread where the strategy spreads weights."""
    if settings.shards_weights:
        from rlhf_lightning.strategies.sharding import shard_all

        shard_all(model, device, offload=settings.offload)
    else:
        nn.Module.to(model, device)


def whole_in_first(model: PreTrainedModel) -> None:
    """Give the first process all weights of a model, on the host, whole and each by itself; in the others it is of no
    use then.

    All processes take part, one weight at a time.
    """
    if not is_sharded(model):
        if is_first():
            nn.Module.to(model, "cpu")
            for parameter in model.parameters():
                # ZeRO-2 keeps weights as views of one buffer, which cannot be saved
                if parameter.untyped_storage().nbytes() > parameter.nbytes:
                    parameter.data = parameter.detach().clone()
        return
    from rlhf_lightning.strategies.sharding import gathered, without_hooks

    made: dict[int, nn.Parameter] = {}  # a tied weight stays one
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in made:
                full = gathered(parameter, keep=is_first())
                made[id(parameter)] = nn.Parameter(full, requires_grad=parameter.requires_grad)
                made[id(made[id(parameter)])] = made[id(parameter)]
            module._parameters[name] = made[id(parameter)]
    without_hooks(model)
