"""`task=reward`: collect comparisons, train the reward model on all their pairs, calibrate, measure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.config import RewardConfig
from rlhf_lightning.data.batching import comparison_batches
from rlhf_lightning.data.collate import collate_comparisons, encode_completions, encode_prompts
from rlhf_lightning.data.datamodule import StageData
from rlhf_lightning.data.records import pairs_of
from rlhf_lightning.data.stored import StoredRecords
from rlhf_lightning.functional.statistics import expected_calibration_error
from rlhf_lightning.models.forward import sequence_scores
from rlhf_lightning.models.loading import (
    frozen,
    grow_embeddings,
    load_scorer,
    new_policy,
    new_scorer,
    parameters_of,
    placed,
    save,
)
from rlhf_lightning.models.tokens import pad_id
from rlhf_lightning.runs.files import temporary_name
from rlhf_lightning.stages.reward_model import RewardModule
from rlhf_lightning.tasks.collect import comparisons
from rlhf_lightning.tasks.fit import device_of, fit
from rlhf_lightning.tasks.job import (
    Job,
    export,
    new_tokenizer,
    parent_tokenizer,
    require_same_tokenizer,
)

DEMONSTRATIONS = 512
"""Demonstrations whose mean score the bias makes 0."""


def run(job: Job) -> dict[str, float]:
    """Collect, train, calibrate, export, and return the stage's metrics."""
    hp: RewardConfig = job.root.reward
    if {"init", "policy"} <= job.parents.keys():
        require_same_tokenizer(job.parents["policy"], job.parents["init"], key="reward.init.policy")
    train = comparisons(job, "train", hp.prompts)
    held_out = {split: comparisons(job, split, hp.eval_prompts) for split in ("validation", "test")}
    tokenizer, model = _start(job)
    length = job.root.model.context_length
    loaders = [
        comparison_batches(
            records,
            tokenizer,
            hp=hp,
            max_length=length,
            seed=job.seed("data"),
            train=first,
            prefetch=2,
        )
        for records, first in ((train, True), (held_out["validation"], False))
    ]
    module = RewardModule(hp, model, job.optimizer(hp.optimizer), total_steps=len(loaders[0]))
    fit(
        job,
        module,
        StageData(*loaders),
        validate_every=hp.eval_every,
        checkpoint_every=hp.checkpoint_every,
    )
    frozen(model)
    calibrate(job, model, tokenizer)
    metrics = _metrics(job, model, tokenizer, held_out) | {
        "reward/prompts": float(len(train)),
        "reward/completions": float(sum(len(r["completions"]) for r in train)),
        "reward/completions_too_long": float(loaders[0].counts["completions_too_long"]),
        "reward/prompts_dropped": float(loaders[0].counts["prompts_dropped"]),
        "reward/parameters": float(parameters_of(model)),
    }
    export(job, model, tokenizer, metrics, how_to_load="AutoModelForSequenceClassification")
    return metrics


def _start(job: Job) -> tuple[PreTrainedTokenizerFast, PreTrainedModel]:
    """Tokenizer and scalar-head model: from SFT, from an earlier reward model, or from the model's own weights."""
    root, seed = job.root, job.seed("weights")
    if "init" in job.parents:
        parent = job.parents["init"]
        tokenizer = parent_tokenizer(job, "init")
        if parent.stage == "reward":
            scorer = load_scorer(parent.path, root.model)
            scorer.config.reward_bias, scorer.config.reward_gain = 0.0, 1.0
            return tokenizer, grow_embeddings(scorer, tokenizer)
        scorer = new_scorer(parent.path, root.model, seed=seed)
        return tokenizer, grow_embeddings(scorer, tokenizer)
    tokenizer = new_tokenizer(job)
    if root.model.path is not None:
        scorer = new_scorer(root.model.path, root.model, seed=seed)
        return tokenizer, grow_embeddings(scorer, tokenizer)
    folder = temporary_name(job.run.path / "random_policy")
    save(new_policy(root.model, tokenizer, seed=seed), tokenizer, folder)
    scorer = new_scorer(folder, root.model, seed=seed)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    return tokenizer, scorer


def calibrate(job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Set bias (and gain) in the model's config so that demonstrations score 0 on average [I]."""
    if "demonstration" not in job.mixture.kinds:
        job.say("no demonstrations in the mix: the reward's bias stays 0")
        return
    size = job.mixture.size("demonstration", "train")
    count = DEMONSTRATIONS if size is None else min(size, DEMONSTRATIONS)
    records = list(job.mixture.records("demonstration", "train", count))
    prompts = [r["messages"][:-1] for r in records]
    replies = [[r["messages"][-1]["content"]] for r in records]
    found = [
        score
        for scores in _scores(job, model, tokenizer, prompts, replies)
        for score in scores.tolist()
    ]
    scores = torch.tensor(found)
    model.config.reward_bias = scores.mean().item()
    if job.root.reward.calibrate_gain:
        model.config.reward_gain = 1 / max(scores.std().item(), 1e-6)


@torch.no_grad()
def _scores(
    job: Job,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[dict[str, str]]],
    completions: Sequence[Sequence[str]],
) -> list[torch.Tensor]:
    """Scores of each prompt's completions."""
    hp, device = job.root.reward, device_of(job)
    placed(model, device)
    encoded = encode_prompts(tokenizer, prompts)
    texts = iter(encode_completions(tokenizer, [t for row in completions for t in row]))
    items = [
        (p, [next(texts) for _ in row], {}) for p, row in zip(encoded, completions, strict=True)
    ]
    found: list[torch.Tensor] = []
    for start in range(0, len(items), hp.micro_batch_size):
        job.stop.check()
        chunk = items[start : start + hp.micro_batch_size]
        batch = collate_comparisons(
            [(p, c, {"ranks": [0] * len(c)}) for p, c, _ in chunk], pad_id(tokenizer)
        )
        scores = sequence_scores(model, batch.ids.to(device), batch.mask.to(device)).cpu()
        found += scores.split([len(c) for _, c, _ in chunk])
    return found


@dataclass
class _Pairs:
    """Outcomes on pairs: 1 right, ½ equal, 0 wrong."""

    outcomes: list[float]

    @property
    def accuracy(self) -> float:
        return sum(self.outcomes) / len(self.outcomes) if self.outcomes else float("nan")


def _metrics(
    job: Job,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    held_out: dict[str, StoredRecords],
) -> dict[str, float]:
    """Accuracies on held-out prompts: validation is labeled by training's labelers, test by held-out ones."""
    validation = _judged(job, model, tokenizer, held_out["validation"])
    test = _judged(job, model, tokenizer, held_out["test"])
    both = [*validation, *test]
    gold = [o for record, scores in both for o in _gold_outcomes(job, record, scores)]
    metrics = {
        "reward/pairwise_accuracy": _accuracy(validation),
        "reward/pairwise_accuracy_held_out_labelers": _accuracy(test),
        "reward/length_baseline_accuracy": _accuracy(
            [(r, torch.tensor([float(len(t)) for t in r["completions"]])) for r, _ in validation]
        ),
        "reward/ece": _calibration(validation),
        "reward/score_std": torch.cat([s for _, s in both]).std().item(),
    }
    if gold:
        metrics["reward/gold_accuracy"] = _Pairs(gold).accuracy
    by_size: dict[int, list[float]] = defaultdict(list)
    for record, scores in validation:
        by_size[len(record["completions"])] += _outcomes(pairs_of(record)[0], scores)
    for size, outcomes in sorted(by_size.items()):
        metrics[f"reward/pairwise_accuracy_k{size}"] = _Pairs(outcomes).accuracy
    agreement = job.mixture.labeler_agreement()
    return metrics if agreement is None else metrics | {"labelers/agreement": agreement}


def _judged(
    job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, records: StoredRecords
) -> list[tuple[dict[str, Any], torch.Tensor]]:
    found = list(records)
    prompts, completions = [r["prompt"] for r in found], [r["completions"] for r in found]
    return list(zip(found, _scores(job, model, tokenizer, prompts, completions), strict=True))


def _outcomes(pairs: Iterable[tuple[int, int]], scores: torch.Tensor) -> list[float]:
    values = scores.tolist()
    return [0.5 if values[w] == values[x] else float(values[w] > values[x]) for w, x in pairs]


def _accuracy(judged: Iterable[tuple[dict[str, Any], torch.Tensor]]) -> float:
    return _Pairs([o for r, s in judged for o in _outcomes(pairs_of(r)[0], s)]).accuracy


def _gold_outcomes(job: Job, record: dict[str, Any], scores: torch.Tensor) -> list[float]:
    """Against the gold order; gold ties are left out."""
    golds = [job.mixture.gold(record, text) for text in record["completions"]]
    if any(g is None for g in golds):
        return []
    totals = [g.total for g in golds]
    indices = range(len(totals))
    pairs = [(w, x) for w in indices for x in indices if totals[w] > totals[x] + 1e-9]
    return _outcomes(pairs, scores)


def _calibration(judged: Iterable[tuple[dict[str, Any], torch.Tensor]]) -> float:
    differences = [
        scores[w] - scores[x] for record, scores in judged for w, x in pairs_of(record)[0]
    ]
    if not differences:
        return float("nan")
    return float(expected_calibration_error(torch.stack(differences).sigmoid()))
