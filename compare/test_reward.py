"""The reward model's loss with K = 2, one step of trl's RewardTrainer on the same conversations."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from trl.trainer.reward_config import RewardConfig as TheirConfig
from trl.trainer.reward_trainer import RewardTrainer

from compare.chat import TALKS, chat_tokenizer, conversation, random_model
from compare.table import differs, same, same_gradients
from compare.trl_ppo import gradients
from compare.trl_step import Step, one_step, run
from rlhf_lightning.batches import ComparisonBatch
from rlhf_lightning.config import RewardConfig
from rlhf_lightning.data.collate import collate_comparisons
from rlhf_lightning.data.encode import encode_completion, encode_prompt
from rlhf_lightning.models.forward import sequence_scores
from rlhf_lightning.stages.reward_model import RewardModule
from tests.tiny import PAD

pytestmark = pytest.mark.parametrize("family", ["llama", "gpt2"])

MARGIN, CENTERING = 0.5, 0.02


def comparisons() -> list[dict[str, Any]]:
    """A question with its answer, which wins, and the answer to the next question."""
    made = []
    for talk, other in zip(TALKS, TALKS[1:] + TALKS[:1], strict=True):
        prompt = conversation(talk[:1], system=len(talk) > 2)
        made.append({"prompt": prompt, "completions": [other[1], talk[1]], "ranks": [1, 0]})
    return made


def our_batch() -> ComparisonBatch:
    tokenizer = chat_tokenizer(marked=False)
    items = [
        (
            encode_prompt(tokenizer, record["prompt"]),
            [encode_completion(tokenizer, text) for text in record["completions"]],
            record,
        )
        for record in comparisons()
    ]
    return collate_comparisons(items, PAD)


def their_step(model: PreTrainedModel, folder: Path, *, margin: float = 0.0, **settings) -> Step:
    def turn(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    rows = [
        {
            "prompt": record["prompt"],
            "chosen": turn(record["completions"][1]),
            "rejected": turn(record["completions"][0]),
        }
        | ({"margin": margin} if margin else {})
        for record in comparisons()
    ]
    trainer = RewardTrainer(
        model=model,
        args=TheirConfig(
            **one_step(folder, per_device_train_batch_size=4, gradient_accumulation_steps=2),
            **settings,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=copy.deepcopy(chat_tokenizer(marked=False)),
    )
    return run(trainer)


def our_step(model: PreTrainedModel, hp: RewardConfig) -> tuple[torch.Tensor, dict]:
    """Loss of all eight pairs and the gradients, by the stage's own loss."""
    batch = our_batch()
    module = RewardModule(hp, model, partial(torch.optim.SGD, lr=0.1), total_steps=1)
    loss = module.loss(sequence_scores(model, batch.ids, batch.mask), batch, prompts=batch.prompts)
    loss.backward()
    return loss.detach(), gradients(model)


def scorer(family: str) -> PreTrainedModel:
    return random_model(AutoModelForSequenceClassification, family, seed=3)


def test_a_comparison_is_the_same_tokens(family: str, tmp_path: Path) -> None:
    batch, found = our_batch(), set()
    for inputs in their_step(scorer(family), tmp_path).inputs:
        rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
        found |= {tuple(ids[mask].tolist()) for ids, mask in rows}
    mine = {tuple(i[m].tolist()) for i, m in zip(batch.ids, batch.mask, strict=True)}
    assert found == mine
    assert len(mine) == 16


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("K = 2", {}, {}),
        ("K = 2, margin", {"margin": MARGIN}, {"margin": MARGIN}),
        # ours is on the squared mean of a pair's scores, theirs on their squared sum
        (
            "K = 2, centering (ours 4 × theirs)",
            {"centering": 4 * CENTERING},
            {"center_rewards_coefficient": CENTERING},
        ),
    ],
)
def test_the_loss_of_pairs_and_its_gradients_are_the_same(
    family: str, tmp_path: Path, name: str, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    step = their_step(scorer(family), tmp_path, **theirs)
    loss, found = our_step(scorer(family), RewardConfig(**ours))
    same(f"reward loss, {name}", family, loss, step.loss)
    same_gradients(f"reward gradients, {name}", family, found, step.gradients)


def test_the_centering_weight_is_on_the_mean_of_a_pair(family: str, tmp_path: Path) -> None:
    step = their_step(scorer(family), tmp_path, center_rewards_coefficient=CENTERING)
    plain, _ = our_step(scorer(family), RewardConfig())
    loss, _ = our_step(scorer(family), RewardConfig(centering=CENTERING))
    differs(
        "centering penalty at the same coefficient",
        family,
        loss - plain,
        step.loss - plain,
        "of the mean score of a pair, in the unit of a score; theirs is of the sum, 4 times as large",
        at_least=0.7,
    )
