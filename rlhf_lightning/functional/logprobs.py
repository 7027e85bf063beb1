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
"""Logits (16 MB in fp32) that are worked on at once; a chunk is at least one token's."""


def token_logprobs(
    logits: Float[Tensor, "batch response vocab"],
    tokens: Int[Tensor, "batch response"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "batch response"]:
    """Log-probabilities of `tokens`, at least in fp32.

    log softmax(logits / temperature)[token] = selected logit − logsumexp.
    The fp32 copy of the logits lives for a few tokens at a time, in the backward pass too.
    The logits at index t are those that predict tokens[t].
    Raises: ValueError if temperature is not positive.
    """
    _require_positive(temperature)

    def of_some(some: Tensor, selected: Tensor) -> Tensor:
        scaled = _scaled(some, temperature)
        chosen = scaled.gather(-1, selected.long().unsqueeze(-1)).squeeze(-1)
        return chosen - scaled.logsumexp(-1)

    # fp32 logits at temperature 1 need no copy, and logsumexp keeps none for the backward pass
    recompute = logits.dtype in (torch.float16, torch.bfloat16) or temperature != 1.0
    return _in_pieces(of_some, logits, tokens, recompute=recompute)


def entropy(
    logits: Float[Tensor, "batch response vocab"], *, temperature: float = 1.0
) -> Float[Tensor, "batch response"]:
    """−Σ p log p of p = softmax(logits / temperature), in nats, at least in fp32.

    As in token_logprobs, the fp32 copy of the logits lives for a few tokens at a time.

    Raises: ValueError if temperature is not positive.
    """
    _require_positive(temperature)

    def of_some(some: Tensor) -> Tensor:
        logp = _scaled(some, temperature).log_softmax(-1)
        # a token that cannot occur (logit −inf) adds 0, where 0 · −inf would be NaN
        return -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)

    return _in_pieces(of_some, logits, recompute=True)


def _require_positive(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    logits = at_least_float32(logits)
    return logits if temperature == 1.0 else logits / temperature


def _in_pieces(function: Callable[..., Tensor], *tensors: Tensor, recompute: bool) -> Tensor:
    """function(*tensors), some rows at a time; a row that alone is too large, some positions at a time."""
    batch, response, vocab = tensors[0].shape
    rows = max(1, math.ceil(batch / max(1, _CHUNK // max(1, response * vocab))))
    positions = max(1, math.ceil(response / max(1, _CHUNK // max(1, vocab))))
    return torch.cat(
        [
            torch.cat(
                [
                    _call(function, *piece, recompute=recompute)
                    for piece in zip(*(t.chunk(positions, 1) for t in row), strict=True)
                ],
                1,
            )
            for row in zip(*(t.chunk(rows) for t in tensors), strict=True)
        ]
    )


def _call(function: Callable[..., Tensor], *args: Tensor, recompute: bool) -> Tensor:
    """function(*args), keeping only `args` for the backward pass where `recompute` is set."""
    if not (recompute and torch.is_grad_enabled() and args[0].requires_grad):
        return function(*args)
    return cast(
        "Tensor", checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    )
