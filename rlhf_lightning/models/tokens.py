"""What models need of a tokenizer: two ids, and texts from rows of ids."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedTokenizerFast


def pad_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Id of the pad token, which `prepare_tokenizer` has made sure of."""
    found = tokenizer.pad_token_id
    assert isinstance(found, int)
    return found


def eos_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Id of the token that ends a response, likewise."""
    found = tokenizer.eos_token_id
    assert isinstance(found, int)
    return found


def decode(
    tokenizer: PreTrainedTokenizerFast, ids: Tensor, mask: Tensor, *, special: bool = False
) -> list[str]:
    """The text of each row's real tokens, ids (B, T); with special tokens where `special` is on."""
    rows = [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
    return list(tokenizer.batch_decode(rows, skip_special_tokens=not special))
