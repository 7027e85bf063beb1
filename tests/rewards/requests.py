"""Requests for a score, and small tokenizers that write and read them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.data.collate import collate_prompts, encode_completions, encode_prompts
from rlhf_lightning.data.tokenizer import train_tokenizer
from rlhf_lightning.rewards.base import ScoreRequest

TEXTS = ["the fox eats meat and the hare eats grass", "who eats what in the wood"] * 4
PROMPTS = ["what does the fox eat", "who eats", "the hare in the wood eats what and who eats it"]
RESPONSES = ["the fox eats meat", "meat", "grass and the fox eats it"]


def tokenizer(size: int = 300) -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocab_size=size)


def records(prompts: list[str] = PROMPTS) -> list[dict[str, Any]]:
    return [
        {"prompt": [{"role": "user", "content": text}], "source": "s", "meta": {"row": i}}
        for i, text in enumerate(prompts)
    ]


def request(reads: PreTrainedTokenizerFast, responses: list[str] = RESPONSES) -> ScoreRequest:
    """Left-padded prompts, right-padded responses with EOS."""
    rows = records()[: len(responses)]
    ids = encode_prompts(reads, [record["prompt"] for record in rows])
    prompts = collate_prompts(ids, rows, reads.pad_token_id)
    said = encode_completions(reads, responses)
    width = max(map(len, said))
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in said])
    padded = [[*row, *[reads.pad_token_id] * (width - len(row))] for row in said]
    return ScoreRequest(prompts.ids, prompts.mask, torch.tensor(padded), mask, rows, reads)
