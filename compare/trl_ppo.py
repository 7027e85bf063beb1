"""One iteration of trl's PPOTrainer on responses that we give, and what it had in hand at each backward pass.

Its `train` runs as it is: only its sampler is replaced (by one that replays), and the call of `backward` is watched.
Nothing of its arithmetic is repeated here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, set_seed
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from compare.tokens import prompts, word_tokenizer
from tests.tiny import PAD


@dataclass
class Pass:
    """One backward pass."""

    seen: dict[str, Tensor]
    """The tensors among the trainer's local variables, by its names for them."""
    policy: dict[str, Tensor]
    """The policy's weights that the pass was made with; likewise `value`."""
    value: dict[str, Tensor]
    policy_gradients: dict[str, Tensor]
    """So far: accumulated over the micro-batches of a minibatch."""
    value_gradients: dict[str, Tensor]


@dataclass
class Iteration:
    passes: list[Pass] = field(default_factory=list)
    whitened: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """(input, output) of each call of its whitening: rewards where they are whitened, then advantages."""
    logged: dict[str, float] = field(default_factory=dict)


@dataclass
class Models:
    """The four networks of PPO."""

    policy: PreTrainedModel
    reference: PreTrainedModel
    value: PreTrainedModel
    reward: PreTrainedModel


def iterate(
    models: Models, responses: Tensor, folder: Path, *, copies: int = 1, **settings: Any
) -> Iteration:
    """One iteration on eight prompts, each answered with its row of `responses`. Updates the models.

    copies: how often a prompt is in the data. The loader must not be at its end where micro-batches accumulate:
    accelerate makes a step at each of them there.
    """
    arguments = trl_config(folder, response_length=responses.shape[1], **settings)
    with replayed(responses):
        return train(models, word_tokenizer(), prompts() * copies, arguments)


def train(
    models: Models,
    tokenizer: PreTrainedTokenizerFast,
    prompt_ids: list[list[int]],
    arguments: PPOConfig,
) -> Iteration:
    """trl's training as `arguments` say."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    set_seed(0)  # trl draws its minibatches from numpy's global state
    trainer = PPOTrainer(
        args=arguments,
        processing_class=tokenizer,
        model=models.policy,
        ref_model=models.reference,
        reward_model=models.reward,
        value_model=models.value,
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in prompt_ids]),
    )
    iteration = Iteration()
    with watched(trainer, models, iteration), whitening(iteration):
        trainer.train()
    iteration.logged = trainer.state.log_history[-1]
    return iteration


def trl_config(folder: Path, **settings: Any) -> PPOConfig:
    """One iteration of eight episodes in fp32 on the CPU, and one minibatch unless `settings` say otherwise."""
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_ppo_epochs": 1,
        "num_mini_batches": 1,
        "temperature": 1.0,
        "stop_token": "eos",
    }
    return PPOConfig(
        output_dir=str(folder),
        total_episodes=8,
        num_sample_generations=0,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        **(defaults | settings),
    )


@contextmanager
def watched(trainer: PPOTrainer, models: Models, iteration: Iteration) -> Iterator[None]:
    """Record every backward pass of `trainer`."""
    backward: Callable[[Tensor], None] = trainer.accelerator.backward

    def recording(loss: Tensor) -> None:
        backward(loss)
        local = sys._getframe(1).f_locals
        seen = {k: v.detach().clone() for k, v in local.items() if isinstance(v, Tensor)}
        seen["rows"] = torch.as_tensor(local["micro_batch_inds"])
        iteration.passes.append(
            Pass(
                seen,
                weights(models.policy),
                weights(models.value),
                gradients(models.policy),
                gradients(models.value),
            )
        )

    with patch.object(trainer.accelerator, "backward", recording):
        yield


@contextmanager
def replayed(responses: Tensor) -> Iterator[None]:
    """Give `responses` for sampled ones, with the logits of trl's own forward pass."""
    answers = {tuple(ids): row for ids, row in zip(prompts(), responses, strict=True)}

    def generate(
        model: torch.nn.Module, queries: Tensor, _size: int, pad_id: int, config: Any
    ) -> tuple[Tensor, Tensor]:
        given = torch.stack([answers[tuple(row[row != PAD].tolist())] for row in queries])
        both = torch.cat([queries, given], 1)
        out: Any = ppo_trainer.forward(model, both, pad_id)
        logits = out.logits[:, queries.shape[1] - 1 : -1]
        return both, logits / config.temperature

    with patch.object(ppo_trainer, "batch_generation", generate):
        yield


@contextmanager
def whitening(iteration: Iteration) -> Iterator[None]:
    """Record what trl whitens."""
    whiten = ppo_trainer.masked_whiten

    def recording(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
        whitened = whiten(values, mask, shift_mean)
        iteration.whitened.append((values.clone(), whitened.clone()))
        return whitened

    with patch.object(ppo_trainer, "masked_whiten", recording):
        yield


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of every gradient that there is."""
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
