"""Packed rows are right for the models that are let through, and the others are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma3TextConfig,
    Lfm2Config,
    Llama4TextConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    RecurrentGemmaConfig,
)

from rlhf_lightning.data.collate import Encoded, pack
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.forward import packed_logits
from rlhf_lightning.models.packing import attention_window, require_packable
from tests.tiny import PAD, VOCAB, gpt2_config, llama_config

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
}
WINDOW = 8

WINDOWED: dict[str, PreTrainedConfig] = {
    "mistral": MistralConfig(**SIZES, sliding_window=WINDOW),
    "qwen3": Qwen3Config(
        **SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "gemma3": Gemma3TextConfig(
        **SIZES, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
    ),
    "llama4": Llama4TextConfig(
        **SIZES,
        attention_chunk_size=WINDOW,
        intermediate_size_mlp=48,
        num_local_experts=2,
        layer_types=["chunked_attention", "full_attention"],
    ),
}
UNUSED: dict[str, PreTrainedConfig] = {
    "qwen3": Qwen3Config(**SIZES, use_sliding_window=False, sliding_window=WINDOW),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "gemma3": Gemma3TextConfig(**SIZES, sliding_window=WINDOW, layer_types=["full_attention"] * 2),
    "llama": llama_config(),
    "gpt2": gpt2_config(),
    "falcon": FalconConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, alibi=False
    ),
}
UNFIT: dict[str, tuple[PreTrainedConfig, str]] = {
    "bloom": (
        BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=1, n_head=2),
        "it takes no position_ids",
    ),
    "falcon with alibi": (
        FalconConfig(
            vocab_size=VOCAB, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, alibi=True
        ),
        r"its positions are distances in the row \(ALiBi\)",
    ),
    "mamba": (
        MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=1, state_size=4),
        "it takes no position_ids",
    ),
    "lfm2": (
        Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]),
        "it has layers of conv",
    ),
    "recurrent gemma": (
        RecurrentGemmaConfig(
            **{k: v for k, v in SIZES.items() if k != "max_position_embeddings"}, lru_width=32
        ),
        "it has (layers of|convolutions)",
    ),
}


def built(config: PreTrainedConfig, attention: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@torch.no_grad()
def largest_difference(model: PreTrainedModel, longest: int) -> float:
    """Of the logits of documents in packed rows and alone, against how far the logits spread."""
    generator = torch.Generator().manual_seed(3)
    sizes = (longest, 5, 4, 3)
    texts = [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in sizes]
    rows = pack([Encoded(t, [True] * len(t)) for t in texts], 16, PAD)
    assert len(rows.ids) < len(texts)  # some row has two
    logits, largest = packed_logits(model, rows), 0.0
    for row in range(len(rows.ids)):
        for document in range(1, int(rows.documents[row].max()) + 1):
            here = rows.documents[row] == document
            alone = model(input_ids=rows.ids[row][here][None], use_cache=False).logits[0]
            largest = max(largest, (logits[row][here] - alone).abs().max().item())
    return largest / logits.std().item()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", WINDOWED)
def test_a_window_is_the_longest_document_that_is_read_as_if_alone(
    family: str, attention: str
) -> None:
    model = built(WINDOWED[family], attention)
    window = attention_window(model.config)
    assert window is not None and window <= WINDOW
    require_packable(model, length=window, key="sft.max_length")
    assert largest_difference(model, window) < 1e-4
    with pytest.raises(
        UserError,
        match=rf"^sft\.max_length must be <= {window}, .*{type(model).__name__} sees, got {window + 1}$",
    ):
        require_packable(model, length=window + 1, key="sft.max_length")
    # and it is refused for a reason
    assert largest_difference(model, window + 3) > 1e-3


@pytest.mark.parametrize("family", UNUSED)
def test_a_window_that_no_layer_uses_is_no_limit(family: str) -> None:
    model = built(UNUSED[family])
    require_packable(model, length=10_000, key="sft.max_length")
    assert largest_difference(model, WINDOW + 3) < 1e-4


@pytest.mark.parametrize("family", UNFIT)
def test_a_model_that_a_mask_does_not_keep_apart_is_refused(family: str) -> None:
    config, reason = UNFIT[family]
    with pytest.raises(
        UserError,
        match=f"^model must be one whose rows can hold several documents, got .*: {reason}",
    ):
        require_packable(AutoModelForCausalLM.from_config(config), length=8, key="sft.max_length")
    with pytest.raises(UserError, match=r" \(or reward\.share_prompt=false\)$"):
        model = AutoModelForCausalLM.from_config(config)
        require_packable(model, length=8, key="x", unless="reward.share_prompt=false")
