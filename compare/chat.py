"""Conversations, a tokenizer with a chat template for both sides, and random models of its size."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.data.tokenizer import BUILT_IN_TEMPLATE, train_tokenizer
from tests.tiny import gpt2_config, llama_config

MARKED_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""The built-in template with the marks from which trl takes what the assistant said."""

SYSTEM = {"role": "system", "content": "Answer in one sentence."}
TALKS = (
    ("What is the moon made of?", "Rock, and no cheese at all."),
    ("Why?", "Because."),
    ("Name a prime above ten.", "Eleven is one; so are 13 and 17.", "And an even one?", "Two."),
    ("How deep is the sea?", "Eleven kilometres at most."),
    ("Say nothing.", "."),
    ("Count to three.", "One, two, three.", "Again!", "One, two, three.", "Stop.", "Fine."),
    ("Do cats purr?", "They do, and nobody knows quite how."),
    ("Is 7 > 5?", "Yes: by two."),
)
"""User and assistant in turns."""


@cache
def chat_tokenizer(*, marked: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE with our built-in template, or with the same template with marks."""
    tokenizer = train_tokenizer([text for talk in TALKS for text in talk], vocab_size=320)
    tokenizer.chat_template = MARKED_TEMPLATE if marked else BUILT_IN_TEMPLATE
    return tokenizer


def conversation(talk: tuple[str, ...], *, system: bool = False) -> list[dict[str, str]]:
    """Messages of a talk."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(talk)]
    return [dict(SYSTEM), *turns] if system else turns


def random_model(kind: Any, family: str, *, seed: int) -> PreTrainedModel:
    """`kind` (an Auto class) with weights wide enough that its outputs differ from token to token."""
    config = {"llama": llama_config, "gpt2": gpt2_config}[family]()
    config.vocab_size = len(chat_tokenizer(marked=False))
    config.max_position_embeddings = 256
    for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop"):
        setattr(config, name, 0.0)
    torch.manual_seed(seed)
    model = kind.from_config(config, attn_implementation="sdpa")
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    return model
