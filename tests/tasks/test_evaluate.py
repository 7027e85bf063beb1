"""What an evaluation says of its samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlhf_lightning.batches import Rollout
from rlhf_lightning.stages.rollout import collect
from rlhf_lightning.tasks import evaluate
from tests.harness import json_lines, only, rlhf_here


@torch.no_grad()
def logprobs(model: Any, ids: Tensor, count: int) -> Tensor:
    """Of the last `count` tokens, by a forward pass over all of them."""
    logits = model.eval()(input_ids=ids[None]).logits[0, -count - 1 : -1]
    return logits.log_softmax(-1).gather(-1, ids[-count:, None]).squeeze(-1)


def test_kl_is_summed_over_the_tokens_of_a_response_and_averaged_over_responses(
    pipeline_outputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="rlhf_lightning")
    spoken: list[Rollout] = []

    def instead(*args: Any, **kwargs: Any) -> Rollout:
        spoken.append(collect(*args, **kwargs))
        return spoken[-1]

    monkeypatch.setattr(evaluate, "collect", instead)
    run = tmp_path / "run"
    few = ["evaluate.models.base=skip", "evaluate.prompts=5", "logger=none", f"run_dir={run}"]
    metrics = rlhf_here(f"outputs={pipeline_outputs}", "task=evaluate", *few)
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(only(pipeline_outputs / task) / "artifact")
        for task in ("ppo", "sft")
    )
    _, rollout = spoken  # of sft, the reference, and of ppo
    k1, k3 = [], []
    for row in range(5):
        response = rollout.response_ids[row][rollout.response_mask[row]]
        ids = torch.cat([rollout.prompt_ids[row][rollout.prompt_mask[row]], response])
        ratio = logprobs(policy, ids, len(response)) - logprobs(reference, ids, len(response))
        k1.append(ratio.sum().item())
        k3.append((torch.exp(-ratio) - 1 + ratio).sum().item())
    rows = [row for row in json_lines(run / "samples.jsonl") if row["model"] == "ppo"]
    assert [row["kl_k1"] for row in rows] == pytest.approx(k1, abs=1e-4)
    assert metrics["ppo/kl_k1"] == pytest.approx(sum(k1) / 5, abs=1e-4)
    assert metrics["ppo/kl_k3"] == pytest.approx(sum(k3) / 5, abs=1e-4)
    *_, titles, _, last = caplog.messages  # and sft's
    assert titles.split()[:2] == ["evaluate:", "score"]
    assert last.split()[:3] == ["evaluate:", "ppo", f"{metrics['ppo/reward_score']:.3g}"]


def test_fewer_test_prompts_than_were_asked_for_are_told(
    pipeline_outputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="rlhf_lightning")
    first = evaluate.first_prompts

    def four(*args: Any, **kwargs: Any) -> Any:
        return first(*args, **(kwargs | {"count": 4}))

    monkeypatch.setattr(evaluate, "first_prompts", four)
    few = ["evaluate.models.base=skip", "evaluate.prompts=6", "logger=none"]
    rlhf_here(f"outputs={pipeline_outputs}", "task=evaluate", *few, f"run_dir={tmp_path / 'run'}")
    assert "evaluate: 4 test prompts there are, where evaluate.prompts=6" in caplog.messages
