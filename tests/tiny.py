"""Tiny models and batches that tests share."""

from __future__ import annotations

import torch
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from rlhf_lightning.batches import PromptBatch, SFTBatch
from rlhf_lightning.models.loading import prepare

PAD, BOS, EOS, VOCAB = 0, 1, 2, 40


def llama_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        num_labels=1,
    )


def gpt2_config() -> GPT2Config:
    return GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        num_labels=1,
    )


def tiny_policy(seed: int = 0, *, family: str = "llama") -> PreTrainedModel:
    torch.manual_seed(seed)
    return _wide(
        LlamaForCausalLM(llama_config()) if family == "llama" else GPT2LMHeadModel(gpt2_config())
    )


def tiny_scorer(seed: int = 1, *, family: str = "llama") -> PreTrainedModel:
    torch.manual_seed(seed)
    return _wide(
        LlamaForSequenceClassification(llama_config())
        if family == "llama"
        else GPT2ForSequenceClassification(gpt2_config())
    )


def _wide(model: PreTrainedModel) -> PreTrainedModel:
    # the stock initialisation is so small that every logit is about 0: nothing would be tested
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    model.config._attn_implementation = "sdpa"
    return prepare(model, _Plain())  # type: ignore[arg-type]


class _Plain:
    gradient_checkpointing = False
    compile = False


def prompt_batch(lengths: list[int], *, width: int | None = None, seed: int = 0) -> PromptBatch:
    """Left-padded random prompts; the content of the padding is the pad token."""
    generator = torch.Generator().manual_seed(seed)
    width = width or max(lengths)
    ids = torch.full((len(lengths), width), PAD)
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        ids[row, width - length :] = torch.randint(3, VOCAB, (length,), generator=generator)
        mask[row, width - length :] = True
    return PromptBatch(ids, mask, [{"row": i} for i in range(len(lengths))])


def packed_text(rows: int = 4, length: int = 12) -> SFTBatch:
    """Random documents, one a row."""
    ids = torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))
    loss_mask = torch.ones(rows, length, dtype=torch.bool)
    loss_mask[:, 0] = False
    positions = torch.arange(length).expand(rows, -1)
    return SFTBatch(ids, loss_mask, positions, torch.ones(rows, length, dtype=torch.long))
