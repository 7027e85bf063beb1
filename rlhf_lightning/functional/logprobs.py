"""Log-probabilities of given tokens and entropy, from logits that are too large to copy in fp32."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
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
    The fp32 copy of the logits lives for a few tokens at a time, in the backward pass too, whose gradient is the only
    other tensor of their size.
    The logits at index t are those that predict tokens[t].
    Raises: ValueError if temperature is not positive.
    """
    _require_positive(temperature)
    rows = logits.reshape(-1, logits.shape[-1])
    return _of_tokens(rows, tokens.reshape(-1), None, temperature).view(tokens.shape)


def masked_token_logprobs(
    logits: Float[Tensor, "batch token vocab"],
    tokens: Int[Tensor, "batch token"],
    mask: Bool[Tensor, "batch token"],
) -> Float[Tensor, " real"]:
    """`token_logprobs` where `mask` is True, row by row; the other logits cost nothing and get a gradient of 0."""
    rows = logits.reshape(-1, logits.shape[-1])
    return _of_tokens(rows, tokens.reshape(-1), mask.reshape(-1).nonzero()[:, 0], 1.0)


def _of_tokens(logits: Tensor, tokens: Tensor, wanted: Tensor | None, temperature: float) -> Tensor:
    apply = cast("Callable[..., Tensor]", _TokenLogprobs.apply)  # pyright: ignore[reportUnknownMemberType]
    return apply(logits, tokens, wanted, temperature)


class _TokenLogprobs(torch.autograd.Function):
    """Rows (N, V) and tokens (N,) → log-probabilities, of the rows `wanted` if it is given.

    By hand, since autograd would put the pieces' gradients together out of copies, and compute the forward pass again.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, tokens: Tensor, wanted: Tensor | None, temperature: float
    ) -> Tensor:
        chosen: list[Tensor] = []
        total: list[Tensor] = []
        for rows in _pieces(logits, wanted):
            scaled = _scaled(logits[rows], temperature)
            total.append(scaled.logsumexp(-1))
            chosen.append(_at(scaled, tokens[rows]))
        normalizer = torch.cat(total)
        ctx.save_for_backward(logits, tokens, wanted, normalizer)
        ctx.temperature = temperature
        return torch.cat(chosen) - normalizer

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - what the decorator makes of it
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, None, None, None]:
        logits, tokens, wanted, normalizer = ctx.saved_tensors
        found = torch.empty_like(logits) if wanted is None else torch.zeros_like(logits)
        done = 0
        for rows in _pieces(logits, wanted):
            scaled = _scaled(logits[rows], ctx.temperature)
            here = slice(done, done := done + len(scaled))
            some = gradient[here, None].to(scaled.dtype)
            # ∂ log p(token) = 1 at the token − p
            part = (scaled - normalizer[here, None]).exp_().mul_(-some)
            part.scatter_add_(1, tokens[rows].long()[:, None], some)
            found[rows] = (part if ctx.temperature == 1.0 else part.div_(ctx.temperature)).to(
                logits.dtype
            )
        return found, None, None, None


def _pieces(logits: Tensor, wanted: Tensor | None) -> Iterator[slice | Tensor]:
    """Which rows are worked on together. No rows are one empty piece."""
    size = max(1, _CHUNK // max(1, logits.shape[1]))
    count = len(logits) if wanted is None else len(wanted)
    for start in range(0, max(count, 1), size):
        here = slice(start, min(start + size, count))
        yield here if wanted is None else wanted[here]


def _at(scaled: Tensor, tokens: Tensor) -> Tensor:
    return scaled.gather(-1, tokens.long()[:, None])[:, 0]


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

    return _in_pieces(of_some, logits)


def _require_positive(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    logits = at_least_float32(logits)
    return logits if temperature == 1.0 else logits / temperature


def _in_pieces(function: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """function(logits), some rows at a time; a row that alone is too large, some positions at a time."""
    batch, response, vocab = logits.shape
    rows = max(1, math.ceil(batch / max(1, _CHUNK // max(1, response * vocab))))
    positions = max(1, math.ceil(response / max(1, _CHUNK // max(1, vocab))))
    return torch.cat(
        [
            torch.cat([_call(function, piece) for piece in row.chunk(positions, 1)], 1)
            for row in logits.chunk(rows)
        ]
    )


def _call(function: Callable[[Tensor], Tensor], some: Tensor) -> Tensor:
    """function(some), keeping only `some` for the backward pass."""
    if not (torch.is_grad_enabled() and some.requires_grad):
        return function(some)
    return cast("Tensor", checkpoint(function, some, use_reentrant=False, preserve_rng_state=False))
