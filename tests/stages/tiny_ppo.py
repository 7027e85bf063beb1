"""A PPO module of tiny random models, for its tests."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.batches import Experience, PPOBatch
from rlhf_lightning.config import PPOConfig, ScheduleConfig
from rlhf_lightning.rewards.text import TextReward
from rlhf_lightning.stages.ppo import PPOModule
from tests import training
from tests.tiny import VOCAB, packed_text, prompt_batch, tiny_policy, tiny_scorer

HP = PPOConfig(
    iterations=3,
    episodes_per_iteration=8,
    rollout_batch_size=8,
    epochs=2,
    minibatch_size=4,
    micro_batch_size=4,
    max_response_tokens=10,
    schedule=ScheduleConfig(name="constant", final_fraction=1.0),
)


def tokenizer() -> PreTrainedTokenizerFast:
    vocab = {f"t{i}": i for i in range(VOCAB)}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="t3"))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="t0", bos_token="t1", eos_token="t2", unk_token="t3"
    )


def reward() -> TextReward:
    return TextReward(lambda prompt, response: response.count("t7") - 0.1 * len(response.split()))


def module(hp: PPOConfig = HP, **changes: Any) -> PPOModule:
    arguments: dict[str, Any] = {
        "policy": tiny_policy(),
        "value": tiny_scorer(),
        "reference": tiny_policy(),
        "reward": reward(),
        "tokenizer": tokenizer(),
        "optimizer": partial(torch.optim.Adam, lr=1e-3, eps=1e-5),
        "seed": 0,
    }
    return PPOModule(hp, **(arguments | changes))


def batches(count: int, *, texts: int = 0) -> list[PPOBatch]:
    """Prompts, with the same text for each of `texts` minibatches."""
    return [
        PPOBatch(
            prompt_batch([3, 5, 2, 6, 4, 4, 7, 1], seed=i),
            [packed_text()] * texts,
        )
        for i in range(count)
    ]


def fit(ppo: PPOModule, data: list[PPOBatch] | None = None) -> list[dict[str, float]]:
    return training.fit(ppo, batches(ppo.hp.iterations) if data is None else data)


def weights(ppo: PPOModule) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in ppo.parameters() if p.requires_grad])


def backward(ppo: PPOModule, micro: Experience, tokens: int) -> torch.Tensor:
    """The whole loss of a micro-batch, whose gradient is added to the module's."""
    losses: list[torch.Tensor] = []

    def keep(loss: torch.Tensor) -> None:
        losses.append(loss.detach())
        loss.backward()

    ppo.minibatches.manual_backward = keep
    ppo.minibatches.backward(micro, tokens, ppo.progress, first=True)
    return torch.stack(losses).sum()
