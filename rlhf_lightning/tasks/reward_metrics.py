"""How good a reward model is: scores of stored comparisons, and accuracies against labelers and against gold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.data.batching import fitting_comparisons
from rlhf_lightning.data.collate import collate_comparisons
from rlhf_lightning.data.records import pairs_of
from rlhf_lightning.data.stored import StoredRecords
from rlhf_lightning.functional.statistics import expected_calibration_error
from rlhf_lightning.models.forward import sequence_scores
from rlhf_lightning.models.loading import placed
from rlhf_lightning.models.tokens import pad_id
from rlhf_lightning.tasks.fit import device_of
from rlhf_lightning.tasks.job import Job

Judged = tuple[dict[str, Any], torch.Tensor]
"""A comparison and the model's score of each completion."""


@torch.no_grad()
def scored(
    job: Job,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    records: Sequence[dict[str, Any]],
) -> list[Judged]:
    """Comparisons with their scores; completions that do not fit the context are counted and left out."""
    hp, device = job.root.reward, device_of(job)
    placed(model, device)
    items, too_long = fitting_comparisons(
        records, tokenizer, job.root.model.context_length, keep_tied=True
    )
    if too_long:
        job.say(f"{too_long} completions too long to be scored")
    found: list[Judged] = []
    for start in range(0, len(items), hp.micro_batch_size):
        job.stop.check()
        chunk = items[start : start + hp.micro_batch_size]
        batch = collate_comparisons(chunk, pad_id(tokenizer))
        scores = sequence_scores(model, batch.ids.to(device), batch.mask.to(device)).cpu()
        parts = scores.split([len(completions) for _, completions, _ in chunk])
        found += [(record, part) for (_, _, record), part in zip(chunk, parts, strict=True)]
    return found


def accuracies(
    job: Job,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    held_out: dict[str, StoredRecords],
) -> dict[str, float]:
    """Accuracies on held-out prompts: validation is labeled by training's labelers, test by held-out ones."""
    validation = scored(job, model, tokenizer, held_out["validation"])
    test = scored(job, model, tokenizer, held_out["test"])
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
        metrics["reward/gold_accuracy"] = _mean(gold)
    by_size: dict[int, list[float]] = defaultdict(list)
    for record, scores in validation:
        by_size[len(record["completions"])] += _outcomes(pairs_of(record)[0], scores)
    for size, outcomes in sorted(by_size.items()):
        metrics[f"reward/pairwise_accuracy_k{size}"] = _mean(outcomes)
    agreement = job.mixture.labeler_agreement()
    return metrics if agreement is None else metrics | {"labelers/agreement": agreement}


def _outcomes(pairs: Iterable[tuple[int, int]], scores: torch.Tensor) -> list[float]:
    """1 right, ½ equal, 0 wrong."""
    values = scores.tolist()
    return [0.5 if values[w] == values[x] else float(values[w] > values[x]) for w, x in pairs]


def _accuracy(judged: Iterable[Judged]) -> float:
    return _mean([o for r, s in judged for o in _outcomes(pairs_of(r)[0], s)])


def _mean(outcomes: Sequence[float]) -> float:
    return sum(outcomes) / len(outcomes) if outcomes else float("nan")


def _gold_outcomes(job: Job, record: dict[str, Any], scores: torch.Tensor) -> list[float]:
    """Against the gold order; gold ties are left out."""
    golds = [job.mixture.gold(record, text) for text in record["completions"]]
    if any(g is None for g in golds):
        return []
    totals = [g.total for g in golds]
    indices = range(len(totals))
    pairs = [(w, x) for w in indices for x in indices if totals[w] > totals[x] + 1e-9]
    return _outcomes(pairs, scores)


def _calibration(judged: Iterable[Judged]) -> float:
    differences = [
        scores[w] - scores[x] for record, scores in judged for w, x in pairs_of(record)[0]
    ]
    if not differences:
        return float("nan")
    return float(expected_calibration_error(torch.stack(differences).sigmoid()))
