"""What collection and evaluation sample with."""

from __future__ import annotations

import torch

from rlhf_lightning.data.batching import Prompt
from rlhf_lightning.stages.rollout import Sampling, collect
from rlhf_lightning.tasks.sampling import speak
from tests.stages.tiny_ppo import tokenizer
from tests.tiny import prompt_batch, tiny_policy


def spoken(prompts: list[Prompt], *, seed: int = 0, tokens: int = 6) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    return speak(
        tiny_policy(),
        tokenizer(),
        prompts,
        max_response_tokens=tokens,
        temperature=1.0,
        generator=generator,
        device=torch.device("cpu"),
    )


def test_each_prompt_gets_one_text_that_the_generator_determines() -> None:
    prompts = [Prompt(i, list(range(3, 4 + i)), {"row": i}) for i in range(4)]
    texts = spoken(prompts)
    assert len(texts) == 4 and texts == spoken(prompts) != spoken(prompts, seed=1)
    assert all(len(text.split()) <= 6 for text in texts)
    assert all(len(text.split()) <= 1 for text in spoken(prompts, tokens=1))


def test_a_collection_tells_after_each_chunk_how_many_rows_were_made() -> None:
    made: list[int] = []
    policy = tiny_policy()
    collect(
        prompt_batch([3, 5, 2, 6, 4]),
        policy,
        policy,
        None,
        None,
        Sampling(4, 1.0, 2, tokenizer()),
        torch.Generator().manual_seed(0),
        after_chunk=made.append,
    )
    assert made == [2, 2, 1]
