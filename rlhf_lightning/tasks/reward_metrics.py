"""How good a reward model is: scores of stored comparisons, and accuracies against labelers and against gold."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.callbacks.progress import counted
from rlhf_lightning.data.batching import fitting_comparisons
from rlhf_lightning.data.collate import collate_comparisons
from rlhf_lightning.data.cutting import cut_comparisons
from rlhf_lightning.data.records import pairs_of
from rlhf_lightning.data.stored import StoredRecords
from rlhf_lightning.functional.statistics import expected_calibration_error
from rlhf_lightning.models.loading import placed
from rlhf_lightning.models.shared_prompt import comparison_scores
from rlhf_lightning.models.tokens import pad_id
from rlhf_lightning.processes import gather, in_order, is_sharded, share, world_size
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
    *,
    what: str,
) -> list[Judged]:
    """Comparisons with their scores; completions that do not fit the context are counted and left out.

    `what` they are stands beside the progress.
    """
    hp, device = job.root.reward, device_of(job)
    if not is_sharded(model):
        placed(model, device)
    length = job.root.model.context_length
    if job.mixture.over_long == "cut":  # as in training
        records, cut = cut_comparisons(records, tokenizer, length)
        if cut:
            job.say(f"{cut} prompts and completions of {what} cut to be scored")
    items, too_long = fitting_comparisons(records, tokenizer, length, keep_tied=True)
    if too_long:
        job.say(f"{too_long} completions of {what} too long to be scored")
    found: list[Judged] = []
    at_once = hp.micro_batch_size * world_size()
    with counted(f"reward: scores of {what}", len(items)) as done:
        for start in range(0, len(items), at_once):
            job.stop.check()
            chunk = items[start : start + at_once]
            own = [chunk[i] for i in share(len(chunk))]
            batch = collate_comparisons(own, pad_id(tokenizer))
            scores = comparison_scores(model, batch.to(device), share_prompt=hp.share_prompt).cpu()
            parts = list(scores.split([len(completions) for _, completions, _ in own]))
            judged = in_order(gather(parts), len(chunk))
            found += [(record, part) for (_, _, record), part in zip(chunk, judged, strict=True)]
            done(len(chunk))
    return found


def accuracies(
    job: Job,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    held_out: dict[str, StoredRecords],
) -> dict[str, float]:
    """Accuracies on held-out prompts: validation is labeled by training's labelers, test by held-out ones.

    Names without a suffix are the validation split's, those with `/test` the test split's; `reward/gold_accuracy` and
    `reward/score_std` are of both together.
    """
    validation = scored(job, model, tokenizer, held_out["validation"], what="validation")
    test = scored(job, model, tokenizer, held_out["test"], what="test")
    both = [*validation, *test]
    gold = [o for record, scores in both for o in _gold_outcomes(job, record, scores)]
    gain = float(getattr(model.config, "reward_gain", 1.0))  # type: ignore[arg-type]
    metrics = split_metrics(validation, gain=gain) | {
        f"{name}/test": value for name, value in split_metrics(test, gain=gain).items()
    }
    metrics |= {
        "reward/pairwise_accuracy_held_out_labelers": _accuracy(test),
        "reward/score_std": torch.cat([s for _, s in both]).std().item(),
    }
    if gold:
        metrics["reward/gold_accuracy"] = _mean(gold)
    by_size: dict[int, list[float]] = defaultdict(list)
    for record, scores in validation:
        by_size[len(record["completions"])] += _outcomes(pairs_of(record)[0], scores)
    for size, outcomes in sorted(by_size.items()):
        if not outcomes:  # nothing was decided, or one completion alone fitted
            continue
        metrics[f"reward/pairwise_accuracy_k{size}"] = _mean(outcomes)
    agreement = job.mixture.labeler_agreement()
    return metrics if agreement is None else metrics | {"labelers/agreement": agreement}


def split_metrics(judged: Sequence[Judged], *, gain: float = 1.0) -> dict[str, float]:
    """The accuracies of one split, all counted on the same pairs: those of the completions that fit.

    `gain` is what the scores were scaled by after training; σ of a difference is a probability without it.
    """
    accuracy, baseline = _accuracy(judged), _accuracy(by_length(judged))
    return {
        "reward/pairwise_accuracy": accuracy,
        "reward/length_baseline_accuracy": baseline,
        "reward/accuracy_over_length_baseline": accuracy - baseline,
        "reward/ece": _calibration(judged, gain),
        "reward/pairs": float(sum(len(pairs_of(record)[0]) for record, _ in judged)),
        **_by_source(judged),
        **_by_agreement(judged),
    }


def by_length(judged: Sequence[Judged]) -> list[Judged]:
    """The same comparisons, each completion scored by its characters: “the longer one wins”."""
    return [(r, torch.tensor([float(len(t)) for t in r["completions"]])) for r, _ in judged]


def _by_source(judged: Sequence[Judged]) -> dict[str, float]:
    """Accuracy on each source's comparisons, where the mix has several."""
    sources = sorted({str(record.get("source")) for record, _ in judged})
    if len(sources) < 2:
        return {}
    return {
        f"reward/pairwise_accuracy_of_{name}": _accuracy(
            [item for item in judged if str(item[0].get("source")) == name]
        )
        for name in sources
    }


AGREEMENT = ((0.0, 0.6), (0.6, 0.8), (0.8, 1.0), (1.0, math.inf))
"""Bins [low, high) of `meta.agreement`, the share of labelers who agree with the recorded order; the last is all."""


def _by_agreement(judged: Sequence[Judged]) -> dict[str, float]:
    """Accuracy by the labelers' agreement, on the comparisons whose record tells it; and how many pairs these have."""
    found: dict[str, list[float]] = defaultdict(list)
    unknown = 0
    for record, scores in judged:
        agreement = record.get("meta", {}).get("agreement")
        if isinstance(agreement, int | float) and 0 <= agreement <= 1:
            low = next(low for low, high in AGREEMENT if low <= agreement < high)
            found[f"{round(100 * low)}"] += _outcomes(pairs_of(record)[0], scores)
        else:
            unknown += len(pairs_of(record)[0])
    metrics: dict[str, float] = {}
    for low, outcomes in sorted(found.items(), key=lambda item: int(item[0])):
        if outcomes:
            name = f"reward/pairwise_accuracy_agreement_from_{low}"
            metrics |= {name: _mean(outcomes), f"{name}_pairs": float(len(outcomes))}
    # pairs whose record tells none, or one that is no share
    told = {"reward/pairwise_accuracy_agreement_unknown_pairs": float(unknown)}
    return metrics | told if metrics else {}


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


def _calibration(judged: Iterable[Judged], gain: float) -> float:
    differences = [
        scores[w] - scores[x] for record, scores in judged for w, x in pairs_of(record)[0]
    ]
    if not differences:
        return float("nan")
    return float(expected_calibration_error((torch.stack(differences) / gain).sigmoid()))
