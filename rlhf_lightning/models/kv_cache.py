"""A key-value cache that is written in place while a batch decodes.

A `DynamicCache` joins the new token's keys and values to the old ones at every step: for a response of R tokens after a
prompt of P, every layer's cache is copied R times. Here a layer keeps room for tokens to come and copies once in
`ROOM` steps. The attention reads the same numbers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 64
"""Tokens of free room when a layer's keys and values are moved; what memory it costs at most, a row."""


class RoomyLayer(DynamicLayer):
    """The keys and values of one layer, (B, heads, tokens, head size) each, as the beginning of larger tensors."""

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self.keys, self.values = layer.keys, layer.values
        self._rooms: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Append what a step computed; returns all keys and values, as views."""
        assert self.keys is not None
        assert self.values is not None
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        if self._rooms is None or end > self._rooms[0].shape[-2]:
            self._rooms = (_with_room(self.keys, end), _with_room(self.values, end))
        keys, values = self._rooms
        keys[..., start:end, :], values[..., start:end, :] = key_states, value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`; the room is made anew, as small as they are."""
        super().batch_select_indices(indices)
        self._rooms = None


def _with_room(old: Tensor, tokens: int) -> Tensor:
    """A larger tensor, with `ROOM` tokens more than `tokens`, that begins with `old`."""
    *rows, length, size = old.shape
    roomy = old.new_empty(*rows, tokens + ROOM, size)
    roomy[..., :length, :] = old
    return roomy


def make_room(cache: Cache) -> None:
    """Let the layers of a filled cache that keep all tokens grow in place; those with a window stay as they are."""
    cache.layers = [
        RoomyLayer(layer) if type(layer) is DynamicLayer and layer.is_initialized else layer
        for layer in cache.layers
    ]
