"""Log-probabilities of given tokens and entropy, from logits that are too large to copy in fp32."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from rlhf_lightning.functional._checks import at_least_float32

_CHUNK = 2**22
"""Logits (16 MB in fp32) that are worked on at once; a chunk is at least one row of the batch."""


def token_logprobs(
    logits: Float[Tensor, "batch response vocab"],
    tokens: Int[Tensor, "batch response"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "batch response"]:
    """Log-probabilities of `tokens`, at least in fp32.

    log softmax(logits / temperature)[token] = selected logit − logsumexp.
    The fp32 copy of the logits lives for a few rows at a time, in the backward pass too.
    The logits at index t are those that predict tokens[t].
    Raises: ValueError if temperature is not positive.
    """
    _require_positive(temperature)

    def of_rows(rows: Tensor, selected: Tensor) -> Tensor:
        scaled = _scaled(rows, temperature)
        chosen = scaled.gather(-1, selected.long().unsqueeze(-1)).squeeze(-1)
        return chosen - scaled.logsumexp(-1)

    # fp32 logits at temperature 1 need no copy, and logsumexp keeps none for the backward pass
    recompute = logits.dtype in (torch.float16, torch.bfloat16) or temperature != 1.0
    count = _chunks(logits)
    parts = zip(logits.chunk(count), tokens.chunk(count), strict=True)
    return torch.cat([_call(of_rows, rows, part, recompute=recompute) for rows, part in parts])


def entropy(
    logits: Float[Tensor, "batch response vocab"], *, temperature: float = 1.0
) -> Float[Tensor, "batch response"]:
    """−Σ p log p of p = softmax(logits / temperature), in nats, at least in fp32.

    As in token_logprobs, the fp32 copy of the logits lives for a few rows at a time.

    Raises: ValueError if temperature is not positive.
    """
    _require_positive(temperature)

    def of_rows(rows: Tensor) -> Tensor:
        logp = _scaled(rows, temperature).log_softmax(-1)
        # a token that cannot occur (logit −inf) adds 0, where 0 · −inf would be NaN
        return -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)

    parts = logits.chunk(_chunks(logits))
    return torch.cat([_call(of_rows, rows, recompute=True) for rows in parts])


def _require_positive(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    logits = at_least_float32(logits)
    return logits if temperature == 1.0 else logits / temperature


def _chunks(logits: Tensor) -> int:
    batch, response, vocab = logits.shape
    rows = max(1, _CHUNK // max(1, response * vocab))
    return max(1, math.ceil(batch / rows))


def _call(function: Callable[..., Tensor], *args: Tensor, recompute: bool) -> Tensor:
    """function(*args), keeping only `args` for the backward pass where `recompute` is set."""
    if not (recompute and torch.is_grad_enabled() and args[0].requires_grad):
        return function(*args)
    return cast(
        "Tensor", checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    )
