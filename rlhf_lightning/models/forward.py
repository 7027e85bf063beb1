"""Forward passes over prompt + response that keep only the positions a stage needs.

Prompts are left-padded and responses right-padded, so that every response begins in the same column.
Position ids count real tokens, so that left-padding never changes a log-probability.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rlhf_lightning.batches import Experience, Rollout, SFTBatch
from rlhf_lightning.models.adapters import TrunkScorer, backbone

Aligned = TypeVar("Aligned", Rollout, Experience)


def position_ids(mask: Tensor) -> Tensor:
    """Place of each real token among the real tokens of its row, (B, T); padding gets 0 or repeats."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


@lru_cache(maxsize=64)
def accepts(model_class: type, name: str) -> bool:
    """Whether a model's forward pass has a parameter of this name."""
    return name in inspect.signature(model_class.forward).parameters


def inputs_for(model: nn.Module, ids: Tensor, mask: Tensor) -> dict[str, Any]:
    """Keyword arguments of a forward pass; models that derive positions from the mask are not given any."""
    kwargs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long()}
    if accepts(type(getattr(model, "trunk", model)), "position_ids"):
        kwargs["position_ids"] = position_ids(mask)
    return kwargs


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Calls of a compiled model that are not compiled: those with a cache, which has another shape at each token."""
    whole = getattr(model, "trunk", model)
    parts = (whole, getattr(whole, "base_model", whole))
    if all(part._compiled_call_impl is None for part in parts):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def packed_logits(model: nn.Module, batch: SFTBatch) -> Tensor:
    """Logits (N, T, V) of packed rows; a token sees only earlier tokens of its own document.

    The mask replaces a model's own, windows included: `packing.require_packable` says for which models that is right.
    """
    same = batch.documents[:, :, None] == batch.documents[:, None, :]
    causal = torch.ones(same.shape[1:], dtype=torch.bool, device=same.device).tril()
    # a padding query sees the other padding before it: a row without any key would be NaN
    return model(
        input_ids=batch.ids,
        attention_mask=attention_mask(model, same & causal),
        position_ids=batch.positions,
        use_cache=False,
    ).logits


def attention_mask(model: nn.Module, allowed: Tensor) -> Tensor:
    """Who may see whom, bool (N, query, key), as transformers passes it on: 4-D, bool for sdpa, numbers for eager."""
    mask = allowed[:, None]
    if model.config._attn_implementation != "eager":  # type: ignore[union-attr]
        return mask
    lowest = torch.finfo(model.dtype).min  # type: ignore[arg-type]
    return torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, lowest)  # type: ignore[arg-type]


def response_logits(
    model: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    response_ids: Tensor,
    response_mask: Tensor,
) -> Tensor:
    """Logits (B, R, V) from which each response token is predicted; none are computed for the prompt."""
    ids, mask = torch.cat([prompt_ids, response_ids], 1), torch.cat([prompt_mask, response_mask], 1)
    start = prompt_ids.shape[1] - 1
    keep = columns(start, start + response_ids.shape[1], ids.device)
    return model(**inputs_for(model, ids, mask), logits_to_keep=keep, use_cache=False).logits


def columns(start: int, end: int, device: torch.device) -> Tensor:
    """Positions for `logits_to_keep`. As a tensor, never as a number: a model slices its states by a number, and a
    product with a slice of several rows copies the output layer's weights for each row where they are frozen."""
    return torch.arange(start, end, device=device)


def run_trunk(model: nn.Module, **inputs: Any) -> Any:
    """The outputs of a scalar-head model's backbone."""
    return model.run(**inputs) if isinstance(model, TrunkScorer) else backbone(model)(**inputs)


def _hidden(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    trunk = backbone(model.trunk if isinstance(model, TrunkScorer) else model)
    return run_trunk(model, **inputs_for(trunk, ids, mask), use_cache=False).last_hidden_state


@contextmanager
def hidden_states_of(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the backbone's last hidden states (B, T, d) of every forward pass that is made within."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, out: Any) -> None:
        seen.append(out.last_hidden_state)

    handle = backbone(model).register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def token_values(
    model: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    response_ids: Tensor,
    response_mask: Tensor,
    *,
    hidden: Tensor | None = None,
) -> Tensor:
    """V before each response token is emitted, (B, R) fp32: the head on the state of the token before it.

    `hidden` (B, P + R, d) are the backbone's states where a forward pass has made them already.
    """
    if hidden is None:
        ids = torch.cat([prompt_ids, response_ids], 1)
        hidden = _hidden(model, ids, torch.cat([prompt_mask, response_mask], 1))
    start = prompt_ids.shape[1] - 1
    hidden = hidden[:, start : start + response_ids.shape[1]]
    return head_scores(model, hidden)


def sequence_scores(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """The reward model's score of each row, (C,) fp32, read at the last real token."""
    last = ids.shape[1] - 1 - mask.long().flip(1).argmax(1)
    hidden = _hidden(model, ids, mask)[torch.arange(len(ids), device=ids.device), last]
    return head_scores(model, hidden)


def head_scores(model: nn.Module, hidden: Tensor) -> Tensor:
    """The scalar head on hidden states (..., d), normalised, fp32 (...)."""
    head: Any = model.score
    with torch.autocast(hidden.device.type, enabled=False):
        raw = head(hidden.to(head.weight.dtype))[..., 0]
    return normalised(model, raw.float())


def normalised(model: nn.Module, raw: Tensor) -> Tensor:
    """(raw − bias) · gain with the numbers that the artifact's config.json carries (0 and 1 where it has none)."""
    config = model.config
    return (raw - getattr(config, "reward_bias", 0.0)) * getattr(config, "reward_gain", 1.0)  # type: ignore[arg-type]


def trim(batch: Aligned) -> Aligned:
    """The batch without columns that are padding in every row: left of the prompts, right of the responses."""
    start = int(batch.prompt_mask.any(0).long().argmax())
    length = int(batch.response_mask.sum(1).max())
    cut: dict[str, Any] = {}
    for f in fields(batch):
        value = getattr(batch, f.name)
        if f.name.startswith("prompt_"):
            cut[f.name] = value[:, start:]
        elif isinstance(value, Tensor) and value.dim() == 2:
            cut[f.name] = value[:, :length]
    return replace(batch, **cut)
