"""Sampling that keeps what PPO needs: the log-probability of every token as it was drawn.

Rows leave the batch when they have emitted EOS. Each token is drawn by inverting its distribution function at a
uniform number that belongs to (row, step), so that the rows which left change nothing for those which stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_lightning.batches import PromptBatch, TensorBatch
from rlhf_lightning.models.forward import columns, inputs_for, uncompiled
from rlhf_lightning.models.kv_cache import make_room
from rlhf_lightning.models.shared_prompt import distinct
from rlhf_lightning.processes import is_sharded, largest

COMPACT_BELOW = 0.8
"""The batch is compacted when fewer than this share of its rows still speak; copying the cache costs too."""


@dataclass
class Responses(TensorBatch):
    """Sampled responses, right-padded."""

    ids: Tensor
    """(B, R) token ids, EOS included."""
    mask: Tensor
    """(B, R) True = sampled token."""
    logprobs: Tensor
    """(B, R) fp32 log-probability at the sampling temperature; 0 in padding."""
    ended: Tensor
    """(B,) True where EOS was emitted."""


@contextmanager
def cast_once(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Under autocast, cast the weights once for all tokens of a batch and not for each.

    Lightning's autocast keeps no casts, and torch's only those of weights that are trained: frozen ones pass for such
    meanwhile. The casts are forgotten at the end: they were made without a graph, and the weights are about to change.
    Of a model that is spread over processes none are kept: they would be whole.
    """
    if not torch.is_autocast_enabled(device.type) or is_sharded(model):
        yield
        return
    dtype = torch.get_autocast_dtype(device.type)
    still = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    for parameter in still:
        parameter.requires_grad_(True)
    try:
        with torch.autocast(device.type, dtype=dtype, cache_enabled=True):
            yield
    finally:
        for parameter in still:
            parameter.requires_grad_(False)
        torch.clear_autocast_cache()


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: PromptBatch,
    *,
    max_new_tokens: int,
    temperature: float,
    eos_id: int,
    pad_id: int,
    generator: torch.Generator | None = None,
    uniforms: Tensor | None = None,
) -> Responses:
    """Sample one response for each prompt from softmax(logits / temperature); no top-k, no top-p.

    Temperature 0 takes the likeliest token (greedy) and gives its log-probability at temperature 1.

    `generator` lives on the CPU whatever the device, so that samples do not depend on it; or `uniforms`
    (B, max_new_tokens) are what it would have drawn. A model that is spread over processes decodes until all of them
    have ended: each step is one that all take.
    """
    if uniforms is None:
        assert generator is not None
        uniforms = draw_uniforms(len(prompts.ids), max_new_tokens, generator)
    with uncompiled(model):
        return _sample(model, prompts, uniforms[:, :max_new_tokens], temperature, eos_id, pad_id)


def _sample(
    model: nn.Module,
    prompts: PromptBatch,
    uniforms: Tensor,
    temperature: float,
    eos_id: int,
    pad_id: int,
) -> Responses:
    device, (rows, max_new_tokens) = prompts.ids.device, uniforms.shape
    uniforms = uniforms.to(device)
    together = is_sharded(model)
    ids = torch.full((rows, max_new_tokens), pad_id, device=device)
    logprobs = torch.zeros(rows, max_new_tokens, device=device)
    mask = torch.zeros(rows, max_new_tokens, dtype=torch.bool, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)

    alive = torch.arange(rows, device=device)  # the original row of each row that is still computed
    attention, lengths = prompts.mask, prompts.mask.sum(1)
    width = prompts.ids.shape[1]
    last = columns(width - 1, width, device)
    first, place = distinct(prompts.ids, prompts.mask)  # each prompt once
    seen = inputs_for(model, prompts.ids[first], attention[first])
    out = model(**seen, use_cache=True, logits_to_keep=last)
    cache, logits = out.past_key_values, out.logits[:, -1]
    if len(first) < rows:
        cache.batch_select_indices(place)
        logits = logits[place]
    make_room(cache)
    for step in range(max_new_tokens):
        token, logprob = _draw(logits, uniforms[alive, step], temperature)
        speaking = ~ended[alive]
        here = alive[speaking]
        ids[here, step], logprobs[here, step], mask[here, step] = (
            token[speaking],
            logprob[speaking],
            True,
        )
        ended[here] = token[speaking] == eos_id
        speaking = ~ended[alive]
        remaining = int(speaking.sum())
        if (largest(remaining) if together else remaining) == 0 or step == max_new_tokens - 1:
            break
        if 0 < remaining < COMPACT_BELOW * len(alive):
            keep = speaking.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            alive, attention, lengths, token = (
                alive[keep],
                attention[keep],
                lengths[keep],
                token[keep],
            )
        attention = torch.cat([attention, torch.ones_like(attention[:, :1])], 1)
        inputs = inputs_for(model, token[:, None], attention)
        if "position_ids" in inputs:
            inputs["position_ids"] = (lengths + step)[:, None]
        logits = model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1]
    width = int(mask.sum(1).max())
    return Responses(ids[:, :width], mask[:, :width], logprobs[:, :width], ended)


def draw_uniforms(
    rows: int, tokens: int, generator: torch.Generator, *, order: Tensor | None = None
) -> Tensor:
    """A uniform number for each row and step, (rows, tokens) on the CPU; drawn for the rows in `order`.

    The numbers follow one another in the generator, so that rows drawn in several calls have those of one call.
    """
    drawn = torch.rand(rows, tokens, generator=generator)
    if order is None:
        return drawn
    uniforms = torch.empty_like(drawn)
    uniforms[order.cpu()] = drawn
    return uniforms


def _draw(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Tokens (A,) at the given quantiles of softmax(logits / temperature), and their log-probabilities."""
    if temperature == 0:
        logprobs = torch.log_softmax(logits.float(), -1)
        token = logprobs.argmax(-1, keepdim=True)
        return token[:, 0], logprobs.gather(1, token)[:, 0]
    logprobs = torch.log_softmax(logits.float() / temperature, -1)
    cumulative = logprobs.exp().cumsum(-1)
    # scaled by the total, which rounding keeps from being exactly one
    token = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)
    token = token.clamp(max=logits.shape[1] - 1)
    return token[:, 0], logprobs.gather(1, token)[:, 0]
