"""What the stages read of a model is the same in a padded batch, in a packed row and alone, in every family.

The families differ in where positions enter: learned and absolute (GPT-2; OPT with an offset of its own), rotary
(Llama, Qwen3 with normalised queries and keys), rotary on a part of each head beside a parallel MLP (GPT-NeoX).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPTNeoXConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from rlhf_lightning.batches import PromptBatch
from rlhf_lightning.data.collate import Encoded, pack
from rlhf_lightning.functional.logprobs import token_logprobs
from rlhf_lightning.models.forward import (
    packed_logits,
    response_logits,
    sequence_scores,
    token_values,
)
from rlhf_lightning.models.generation import Responses, sample
from rlhf_lightning.models.shared_prompt import (
    response_logits_by_cache,
    response_scores_by_cache,
)
from tests.tiny import BOS, EOS, PAD, VOCAB, gpt2_config, llama_config, prompt_batch

JUNK = 17
"""What lies under the padding: never the pad token."""
PROMPTS, RESPONSES = (3, 8, 1, 5), (6, 2, 4, 1)
"""Real tokens of each row of the batch."""


def qwen3_config() -> Qwen3Config:
    return Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
    )


def opt_config() -> OPTConfig:
    return OPTConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )


def neox_config() -> GPTNeoXConfig:
    return GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )


CONFIGS = {
    "gpt2": gpt2_config,
    "llama": llama_config,
    "qwen3": qwen3_config,
    "opt": opt_config,
    "gpt_neox": neox_config,
}

pytestmark = [
    pytest.mark.parametrize("attention", ["sdpa", "eager"]),
    pytest.mark.parametrize("family", CONFIGS),
]


def built(kind, family: str, attention: str) -> PreTrainedModel:
    """A random model whose outputs differ from token to token by about one."""
    config: PreTrainedConfig = CONFIGS[family]()
    config.pad_token_id, config.bos_token_id, config.eos_token_id = PAD, BOS, EOS
    config.num_labels = 1
    torch.manual_seed(0)
    model = kind.from_config(config, attn_implementation=attention)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    assert model.config._attn_implementation == attention
    return model.eval()


def policy(family: str, attention: str) -> PreTrainedModel:
    return built(AutoModelForCausalLM, family, attention)


def scorer(family: str, attention: str) -> PreTrainedModel:
    return built(AutoModelForSequenceClassification, family, attention)


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Left-padded prompts and right-padded responses, with two more columns of padding at both ends."""
    prompts = prompt_batch(list(PROMPTS), width=max(PROMPTS) + 2)
    width = max(RESPONSES) + 2
    ids = torch.randint(3, VOCAB, (4, width), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(width) < torch.tensor(RESPONSES)[:, None]
    return (
        prompts.ids.masked_fill(~prompts.mask, JUNK),
        prompts.mask,
        ids.masked_fill(~mask, JUNK),
        mask,
    )


def plain_row(row: int) -> tuple[Tensor, int]:
    """The row's real tokens without any padding, (1, T), and how many of them are the prompt's."""
    prompt_ids, prompt_mask, response_ids, response_mask = batch()
    prompt, response = prompt_ids[row][prompt_mask[row]], response_ids[row][response_mask[row]]
    return torch.cat([prompt, response])[None], len(prompt)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_response_logprobs_in_a_padded_batch_are_those_of_the_row_alone(
    family: str, attention: str
) -> None:
    model, sequence = policy(family, attention), batch()
    found = token_logprobs(response_logits(model, *sequence), sequence[2])
    assert found[sequence[3]].std() > 0.3  # else there would be nothing to see
    for row, length in enumerate(RESPONSES):
        ids, start = plain_row(row)
        logits = model(input_ids=ids, use_cache=False).logits[:, start - 1 : -1]
        close(found[row, :length], token_logprobs(logits, ids[:, start:])[0])


@torch.no_grad()
def test_values_in_a_padded_batch_are_those_of_the_row_alone(family: str, attention: str) -> None:
    model, sequence = scorer(family, attention), batch()
    found = token_values(model, *sequence)
    assert found[sequence[3]].std() > 0.3
    for row, length in enumerate(RESPONSES):
        ids, start = plain_row(row)
        close(found[row, :length], values_alone(model, ids)[start - 1 : -1])


@torch.no_grad()
def test_a_score_in_a_padded_batch_is_that_of_the_row_alone(family: str, attention: str) -> None:
    model, (prompt_ids, prompt_mask, response_ids, response_mask) = (
        scorer(family, attention),
        batch(),
    )
    ids, mask = (
        torch.cat([prompt_ids, response_ids], 1),
        torch.cat([prompt_mask, response_mask], 1),
    )
    found = sequence_scores(model, ids, mask)
    assert found.std() > 0.3
    close(found, torch.stack([values_alone(model, plain_row(row)[0])[-1] for row in range(4)]))


def rows_that_share_prompts() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The batch's responses after two of its prompts, which stand apart."""
    prompt_ids, prompt_mask, *responses = batch()
    rows = torch.tensor([1, 3, 1, 3])
    return prompt_ids[rows], prompt_mask[rows], responses[0], responses[1]


def test_a_prompt_that_is_computed_once_changes_no_logprob(family: str, attention: str) -> None:
    model, sequence = policy(family, attention), rows_that_share_prompts()
    with torch.no_grad():
        expected = token_logprobs(response_logits(model, *sequence), sequence[2])
    with torch.no_grad():
        first, others = response_logits_by_cache(model, *sequence)
    found = token_logprobs(torch.cat([first, others], 1), sequence[2])
    assert expected[sequence[3]].std() > 0.3
    close(found[sequence[3]], expected[sequence[3]])
    one_token = (*sequence[:2], sequence[2][:, :1], sequence[3][:, :1])
    with torch.no_grad():
        first, others = response_logits_by_cache(model, *one_token)
    assert others.shape == (4, 0, VOCAB)
    close(token_logprobs(first, one_token[2]), expected[:, :1])


def test_a_prompt_that_is_computed_once_changes_no_gradient(family: str, attention: str) -> None:
    model, sequence = policy(family, attention), rows_that_share_prompts()
    ids, mask = sequence[2:]

    def gradients(*parts: Tensor) -> Tensor:
        model.zero_grad()
        logprobs = token_logprobs(torch.cat(parts, 1), ids)
        weights = torch.arange(1.0, len(ids) + 1)[:, None]  # no row's part is that of another
        (weights * logprobs).masked_fill(~mask, 0.0).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    expected = gradients(response_logits(model, *sequence))
    assert expected.abs().max() > 0.1
    close(gradients(*response_logits_by_cache(model, *sequence)), expected)


def test_a_prompt_that_is_computed_once_changes_no_score(family: str, attention: str) -> None:
    model, sequence = scorer(family, attention), rows_that_share_prompts()
    prompt_ids, prompt_mask, response_ids, response_mask = sequence
    whole = (torch.cat([prompt_ids, response_ids], 1), torch.cat([prompt_mask, response_mask], 1))
    with torch.no_grad():
        expected = sequence_scores(model, *whole)
    assert expected.std() > 0.05
    close(response_scores_by_cache(model, *sequence), expected)


def values_alone(model: Any, ids: Tensor) -> Tensor:
    """The head on every state of one row (1, T) → (T,), by the plain forward pass."""
    backbone = getattr(model, model.base_model_prefix)
    return model.score(backbone(input_ids=ids, use_cache=False).last_hidden_state)[0, :, 0]


def test_samples_from_padded_prompts_are_those_of_each_prompt_alone(
    family: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same uniform number for (row, step): the same token, with and without the other rows and the padding."""
    model = policy(family, attention)
    uniforms = torch.rand(4, 10, generator=torch.Generator().manual_seed(5))
    prompts = prompt_batch(list(PROMPTS), width=max(PROMPTS) + 2)
    prompts.ids[~prompts.mask] = JUNK
    together = drawn(model, prompts, uniforms, monkeypatch)
    assert len(together.ids.unique()) > 5
    for row in range(4):
        alone = drawn(
            model, prompts.rows(slice(row, row + 1)).trimmed(), uniforms[row : row + 1], monkeypatch
        )
        length = int(together.mask[row].sum())
        assert alone.ids[0].tolist() == together.ids[row, :length].tolist()
        close(alone.logprobs[0], together.logprobs[row, :length])


def drawn(
    model: PreTrainedModel,
    prompts: PromptBatch,
    uniforms: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> Responses:
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: uniforms)
    responses = sample(
        model,
        prompts,
        max_new_tokens=uniforms.shape[1],
        temperature=1.0,
        eos_id=EOS,
        pad_id=PAD,
        generator=torch.Generator(),
    )
    monkeypatch.undo()
    return responses


@torch.no_grad()
def test_logits_in_a_packed_row_are_those_of_the_document_alone(
    family: str, attention: str
) -> None:
    model, generator = policy(family, attention), torch.Generator().manual_seed(3)
    texts = [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in (9, 7, 5, 4, 3)]
    rows = pack([Encoded(t, [False] + [True] * (len(t) - 1)) for t in texts], 16, PAD)
    assert len(rows.ids) == 2  # 28 tokens in two rows of 16
    logits = packed_logits(model, rows)
    seen = 0
    for row in range(len(rows.ids)):
        for document in range(1, int(rows.documents[row].max()) + 1):
            here = rows.documents[row] == document
            alone = model(input_ids=rows.ids[row][here][None], use_cache=False).logits[0]
            close(logits[row][here], alone)
            seen += 1
    assert seen == len(texts)
