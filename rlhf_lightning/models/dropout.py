"""Dropout and other noise of training, wherever an architecture keeps its number: all off, or that of SFT on."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedModel

_READ_AT_EACH_CALL = ("hidden_dropout", "attention_dropout")
"""Numbers of their config that some layers read while they compute (Falcon, GPT-Neo, Persimmon)."""
_OF_ATTENTION = (".attn_dropout", ".attention_dropout")
"""Dropout of attention weights, by the names of GPT-2 and GPT-NeoX."""


def without_noise(model: PreTrainedModel) -> PreTrainedModel:
    """The model, its dropout, layer dropout and router noise off. Its own config, which is exported, stays as it is."""
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for name, value in list(vars(part).items()):  # some keep it as a number (attention, OPT)
            if _is_noise(name) and isinstance(value, float):
                setattr(part, name, 0.0)
    _set_in_configs(model, _READ_AT_EACH_CALL, 0.0)
    return model


def _is_noise(name: str) -> bool:
    # a `router_jitter_noise` that a layer keeps (Phi-MoE) is no noise: it is read in evaluation, too
    return "dropout" in name or name in ("layerdrop", "jitter_noise")


def set_dropout(module: nn.Module, probability: float) -> int:
    """Set the dropout of residuals and embeddings; returns in how many places there is one.

    That of attention and of adapters stays: the latter have a setting of their own.
    """
    places = [
        (part, key)
        for name, part in module.named_modules()
        if "lora_dropout" not in name and not name.endswith(_OF_ATTENTION)
        for key in _keys(part)
    ]
    for part, key in places:
        setattr(part, key, probability)
    _set_in_configs(module, ("hidden_dropout",), probability)
    return len(places)


def _keys(part: nn.Module) -> list[str]:
    """Where a module keeps the probability: a layer in `p`, OPT in `dropout`, Bloom and Falcon in `hidden_dropout`."""
    if isinstance(part, nn.Dropout):
        return ["p"]
    attention = "Attention" in type(part).__name__  # whose `dropout` is that of its weights
    keys = ["hidden_dropout"] if attention else ["hidden_dropout", "dropout"]
    return [key for key in keys if isinstance(getattr(part, key, None), float)]


def _set_in_configs(module: nn.Module, keys: tuple[str, ...], probability: float) -> None:
    """Set numbers in the configs of a model's layers; they get copies, the model keeps its own."""
    copies: dict[int, Any] = {}
    for part in module.modules():
        config = getattr(part, "config", None)
        if isinstance(part, PreTrainedModel) or config is None:
            continue
        others = [k for k in keys if getattr(config, k, None) not in (None, probability)]
        if not others:
            continue
        own = copies.setdefault(id(config), copy.copy(config))
        for key in others:
            setattr(own, key, probability)
        part.config = own
