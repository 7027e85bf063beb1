"""A tokenizer whose tokens are words t0 … t39, and ragged prompts with responses for them."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.tiny import EOS, PAD, VOCAB

WIDTH = 7
"""Tokens of the longest response."""
PROMPT_LENGTHS = (3, 9, 5, 2, 6, 4, 8, 7)
RAGGED = (4, WIDTH, 2, 6, WIDTH, 3, 5, 1)
"""Response lengths, EOS included: all end with EOS but row 4, which the length limit cut."""
CUT_ROW = 4


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Pads on the left, as a policy's tokenizer does."""
    roles = {"pad_token": "t0", "bos_token": "t1", "eos_token": "t2", "unk_token": "t3"}
    words = {f"t{i}": i for i in range(VOCAB)}
    inner = Tokenizer(models.WordLevel(words, unk_token=roles["unk_token"]))
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", **roles)


def prompts() -> list[list[int]]:
    """Eight prompts of unlike lengths."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        for length in PROMPT_LENGTHS
    ]


def responses(*, ragged: bool) -> Tensor:
    """(8, WIDTH), right-padded. Ragged: see RAGGED; otherwise all have WIDTH tokens, EOS the last of every second."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCAB, (8, WIDTH), generator=generator)
    for row, length in enumerate(RAGGED if ragged else [WIDTH] * 8):
        ids[row, length:] = PAD
        if row != CUT_ROW if ragged else row % 2:
            ids[row, length - 1] = EOS
    return ids
