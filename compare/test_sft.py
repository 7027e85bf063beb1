"""Supervised fine-tuning: one step of trl's SFTTrainer on the same conversations."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from trl.trainer.sft_config import SFTConfig as TheirConfig
from trl.trainer.sft_trainer import SFTTrainer

from compare.chat import TALKS, chat_tokenizer, conversation, random_model
from compare.table import differs, same, same_gradients
from compare.trl_ppo import gradients
from compare.trl_step import Step, one_step, run
from rlhf_lightning.config import SFTConfig
from rlhf_lightning.data.collate import pack
from rlhf_lightning.data.encode import Encoded, encode_demonstrations
from rlhf_lightning.stages.sft import SFTModule
from tests.tiny import PAD

pytestmark = pytest.mark.parametrize("family", ["llama", "gpt2"])

LENGTH = 160


def policy(family: str) -> PreTrainedModel:
    return random_model(AutoModelForCausalLM, family, seed=4)


def talks() -> list[list[dict[str, str]]]:
    """One to three turns, every other one with a system message."""
    return [conversation(talk, system=bool(i % 2)) for i, talk in enumerate(TALKS)]


def documents(messages: list[list[dict[str, str]]], *, longest: int = LENGTH) -> list[Encoded]:
    found = encode_demonstrations(chat_tokenizer(marked=False), messages, longest)
    return [document for document in found if document is not None]


def their_step(
    model: PreTrainedModel, rows: list[dict[str, Any]], folder: Path, **settings: Any
) -> Step:
    """Two micro-batches of four rows, each row one conversation."""
    defaults: dict[str, Any] = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    trainer = SFTTrainer(
        model=model,
        args=TheirConfig(**(one_step(folder, max_length=LENGTH) | defaults | settings)),
        train_dataset=Dataset.from_list(rows),
        processing_class=copy.deepcopy(chat_tokenizer(marked=True)),
    )
    return run(trainer)


def our_step(model: PreTrainedModel, made: list[Encoded]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of the packed conversations, in micro-batches of one packed row."""
    module = SFTModule(SFTConfig(), model, partial(torch.optim.SGD, lr=0.1), total_steps=1)
    batch = pack(made, LENGTH, PAD)
    assert 1 < len(batch.ids) < len(made)
    targets, total = int(batch.loss_mask[:, 1:].sum()), torch.zeros(())
    for micro in batch.micro_batches(1):
        loss = module.loss(micro, normalizer=targets)
        loss.backward()
        total += loss.detach()
    return total, gradients(model)


def targets(step: Step) -> set[tuple[tuple[int, ...], tuple[bool, ...]]]:
    """Ids of each conversation, and which of them are learned."""
    found = set()
    for inputs in step.inputs:
        for ids, labels, mask in zip(
            inputs["input_ids"], inputs["labels"], inputs["attention_mask"].bool(), strict=True
        ):
            found.add((tuple(ids[mask].tolist()), tuple((labels[mask] != -100).tolist())))
    return found


@pytest.mark.parametrize("loss_type", ["nll", "chunked_nll"])
def test_the_assistants_tokens_alone_are_learned_and_alike(
    family: str, tmp_path: Path, loss_type: str
) -> None:
    """All assistant turns; ours packed and in micro-batches of a row, theirs padded and in micro-batches of four."""
    step = their_step(
        policy(family),
        [{"messages": messages} for messages in talks()],
        tmp_path,
        assistant_only_loss=True,
        loss_type=loss_type,
    )
    made = documents(talks())
    assert targets(step) == {(tuple(d.ids), tuple(d.loss_mask)) for d in made}
    loss, found = our_step(policy(family), made)
    same(f"SFT loss, assistant turns ({loss_type})", family, loss, step.loss)
    same_gradients(f"SFT gradients, assistant turns ({loss_type})", family, found, step.gradients)


def test_completions_alone_are_learned_and_alike(family: str, tmp_path: Path) -> None:
    single = [conversation(talk[:2], system=bool(i % 2)) for i, talk in enumerate(TALKS)]
    rows = [{"prompt": messages[:-1], "completion": messages[-1:]} for messages in single]
    step = their_step(policy(family), rows, tmp_path, completion_only_loss=True)
    made = documents(single)
    assert targets(step) == {(tuple(d.ids), tuple(d.loss_mask)) for d in made}
    loss, found = our_step(policy(family), made)
    same("SFT loss, completions", family, loss, step.loss)
    same_gradients("SFT gradients, completions", family, found, step.gradients)


def test_what_is_too_long_is_dropped_and_never_cut(family: str, tmp_path: Path) -> None:
    longest = 40
    step = their_step(
        policy(family),
        [{"messages": messages} for messages in talks()],
        tmp_path,
        assistant_only_loss=True,
        max_length=longest,
    )
    whole = {tuple(d.ids) for d in documents(talks())}
    kept = documents(talks(), longest=longest)
    assert 0 < len(kept) < len(TALKS)
    mine = sum(tuple(d.ids) not in whole for d in kept)
    cut = sum(ids not in whole for ids, _ in targets(step))
    differs(
        f"conversations of more than {longest} tokens that are learned in part",
        family,
        torch.tensor(float(mine)),
        torch.tensor(float(cut)),
        "counted and dropped: an answer without its end teaches not to end",
        at_least=1.0,
    )
