"""What our reward stage saves is a reward model, and a value model, of trl's PPO."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from compare.ours import sequence
from compare.table import differs, same
from compare.trl_ppo import Models, train, trl_config, weights
from rlhf_lightning.config import ModelConfig
from rlhf_lightning.models.forward import sequence_scores
from rlhf_lightning.models.loading import load_scorer
from tests.harness import only, rlhf_here

MODEL = ModelConfig(name="debug", path="unused")
QUESTIONS = ("Hello.", "Who are you?", "Why?", "Good day to you.", "Yes.", "And now?", "Oh!", "No.")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Artifacts of the stages up to the reward model, at debug size."""
    outputs = tmp_path_factory.mktemp("runs")
    for task in ("pretrain", "sft", "reward"):
        rlhf_here(f"task={task}", f"outputs={outputs}")
    return {task: only(outputs / task) / "artifact" for task in ("sft", "reward")}


def test_trl_trains_with_our_artifacts_as_they_are(
    artifacts: dict[str, Path], tmp_path: Path
) -> None:
    """trl samples by itself here; only its backward pass is watched."""
    tokenizer = AutoTokenizer.from_pretrained(artifacts["sft"])
    kind, head = AutoModelForCausalLM, AutoModelForSequenceClassification
    models = Models(
        policy=kind.from_pretrained(artifacts["sft"]),
        reference=kind.from_pretrained(artifacts["sft"]),
        value=head.from_pretrained(artifacts["reward"]),
        reward=head.from_pretrained(artifacts["reward"]),
    )
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in QUESTIONS
    ]
    before = weights(models.policy), weights(models.value)
    settings = trl_config(tmp_path, response_length=12, learning_rate=1e-3)
    (found,) = train(models, tokenizer, prompts, settings).passes
    for old, new in zip(before, (weights(models.policy), weights(models.value)), strict=True):
        assert any(not torch.equal(old[name], new[name]) for name in old)
        assert all(torch.isfinite(tensor).all() for tensor in new.values())

    seen = found.seen
    seen["responses"] = seen["postprocessed_responses"]
    prompt, _, ids, _ = sequence(seen)
    both = torch.cat([prompt, ids], 1)
    scorer = load_scorer(artifacts["reward"], MODEL).eval()
    bias = scorer.config.reward_bias
    with torch.no_grad():
        scores = sequence_scores(scorer, both, both != tokenizer.pad_token_id)
    same("scores of our saved reward model, raw", "artifact", scores + bias, seen["scores"])
    differs(
        "scores of our saved reward model",
        "artifact",
        scores,
        seen["scores"],
        "our loader takes off the bias in config.json: demonstrations score 0 on average, the order is the same",
        at_least=1e-3,
    )
