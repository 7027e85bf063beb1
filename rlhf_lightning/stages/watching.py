"""What PPO looks like on fixed prompts: numbers, and samples with their per-token KL, value and advantage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerFast

from rlhf_lightning.batches import PromptBatch, Rollout
from rlhf_lightning.config import PPOConfig
from rlhf_lightning.functional.scores import RunningMoments
from rlhf_lightning.models.tokens import decode
from rlhf_lightning.stages.rollout import rollout_statistics, sample_rows, to_experience

GoldFunction = Callable[[list[dict[str, Any]], list[str]], list[float]]
"""Records and responses → the known true score of each, for watching only; training never sees it."""


def watched(
    prompts: PromptBatch,
    rollout: Rollout,
    hp: PPOConfig,
    tokenizer: PreTrainedTokenizerFast,
    *,
    kl_coef: float,
    moments: RunningMoments,
    gold: GoldFunction | None,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """`val/*` of one batch, and rows for the sample tables."""
    statistics = rollout_statistics(rollout)
    metrics = {name.replace("rollout/", "val/"): value for name, value in statistics.items()}
    rows = sample_rows(rollout, prompts, tokenizer, hp.sample_prompts)
    if hp.advantage == "gae":  # one response a prompt has no others to be held against
        alone = replace(hp, samples_per_prompt=1)
        experience, _ = to_experience(rollout, alone, kl_coef=kl_coef, moments=moments)
        for i, row in enumerate(rows):
            row["token_advantage"] = experience.advantages[i][rollout.response_mask[i]].tolist()
    if gold is not None:
        golds = gold(
            prompts.records, decode(tokenizer, rollout.response_ids, rollout.response_mask)
        )
        metrics["val/gold_score"] = sum(golds) / len(golds)
        for row, value in zip(rows, golds, strict=False):
            row["gold"] = value
    return metrics, rows


def weighted_means(parts: list[tuple[dict[str, float], int]]) -> dict[str, float]:
    """Means over batches of (metrics, prompts). Entropy is a mean over tokens, so tokens weigh it."""

    def mean(name: str) -> float:
        having = [(m, n) for m, n in parts if name in m]
        of_tokens = name == "val/entropy"
        sizes = [n * m["val/response_tokens"] if of_tokens else n for m, n in having]
        return sum(m[name] * size for (m, _), size in zip(having, sizes, strict=True)) / sum(sizes)

    return {name: mean(name) for name in sorted({name for m, _ in parts for name in m})}
