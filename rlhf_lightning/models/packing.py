"""Which models can have several documents in one row, told apart by a 4-D mask and by positions.

What a model does besides plain attention over that mask would mix the documents without a word, so it is refused here.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.forward import accepts

_WINDOWED = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Kind of layer → the setting that says how far it sees."""


def require_packable(
    model: PreTrainedModel, *, length: int, key: str, unless: str | None = None
) -> None:
    """Raises: UserError if the documents of a row, each of at most `length` tokens, would not be read as if alone.

    `key` is the setting that says how long they are, `unless` one that does without packed rows.
    """
    hint = f" (or {unless})" if unless else ""
    reason = _unfit(model)
    if reason is not None:
        name = type(model).__name__
        raise UserError(
            f"model must be one whose rows can hold several documents, got {name}: {reason}{hint}"
        )
    window = attention_window(model.config)
    if window is not None and length > window:
        raise UserError(
            f"{key} must be <= {window}, as far as the attention of {type(model).__name__} sees, got {length}{hint}"
        )


def _unfit(model: PreTrainedModel) -> str | None:
    """Why a mask and positions do not keep documents apart; None: they do."""
    if getattr(model.config.get_text_config(), "alibi", False):
        return "its positions are distances in the row (ALiBi)"
    if not accepts(type(model), "position_ids"):
        return "it takes no position_ids"
    return beside_attention(model)


def beside_attention(model: PreTrainedModel) -> str | None:
    """What else than attention goes along a row, whatever the mask says, and has no keys and values; None: nothing."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - {
        "full_attention",
        *_WINDOWED,
    }
    if kinds:
        return f"it has layers of {min(kinds)}"
    if any(isinstance(module, nn.Conv1d) for module in model.modules()):
        return "it has convolutions over tokens"
    return None


def attention_window(config: Any) -> int | None:
    """Tokens that the shortest-sighted layer sees, its own among them; None: all of them.

    A config may carry a window that its layers do not use.
    """
    config = config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # one kind of layer: then the window is used if there is one
        return getattr(config, "sliding_window", None)
    found = [getattr(config, name, None) for kind, name in _WINDOWED.items() if kind in kinds]
    return min((window for window in found if window is not None), default=None)
