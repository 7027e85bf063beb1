"""One response of a policy to each of a batch of prompts, as text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.data.batching import Prompt
from rlhf_lightning.data.collate import collate_prompts
from rlhf_lightning.models.generation import draw_uniforms, sample
from rlhf_lightning.models.tokens import decode, eos_id, pad_id
from rlhf_lightning.processes import gather, in_order, share


def speak(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    *,
    max_response_tokens: int,
    temperature: float,
    generator: torch.Generator,
    device: torch.device,
) -> list[str]:
    """Texts in the order of the prompts, all sampled at once.

    `device` is where it computes: under `strategy.offload` its weights lie elsewhere in between.
    With several processes each samples its share; all of them get all texts.
    """
    uniforms = draw_uniforms(len(prompts), max_response_tokens, generator)
    rows = share(len(prompts))
    batch = collate_prompts(
        [prompts[i].ids for i in rows], [prompts[i].record for i in rows], pad_id(tokenizer)
    )
    responses = sample(
        policy,
        batch.to(device),
        max_new_tokens=max_response_tokens,
        temperature=temperature,
        eos_id=eos_id(tokenizer),
        pad_id=pad_id(tokenizer),
        uniforms=uniforms[rows],
    )
    texts = decode(tokenizer, responses.ids, responses.mask)
    return in_order(gather(texts), len(prompts))
