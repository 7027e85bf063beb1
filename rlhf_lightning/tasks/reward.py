"""`task=reward`: collect comparisons, train the reward model on all their pairs, calibrate, measure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.config import RewardConfig
from rlhf_lightning.data.batching import comparison_batches
from rlhf_lightning.data.datamodule import StageData
from rlhf_lightning.data.foreign import WithForeign
from rlhf_lightning.data.records import Record
from rlhf_lightning.data.stored import Reordered, StoredRecords
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.loading import (
    grow_embeddings,
    load_scorer,
    parameters_of,
)
from rlhf_lightning.models.packing import require_packable
from rlhf_lightning.stages.reward_model import RewardModule
from rlhf_lightning.tasks.collect import comparisons, stored_comparisons
from rlhf_lightning.tasks.fit import fit
from rlhf_lightning.tasks.job import (
    Job,
    add_trained_adapter,
    export,
    new_tokenizer,
    parent_tokenizer,
    require_same_tokenizer,
)
from rlhf_lightning.tasks.reward_metrics import accuracies, scored
from rlhf_lightning.tasks.scorers import scorer_of_own_weights, scorer_with_new_head


def run(job: Job) -> dict[str, float]:
    """Collect, train, calibrate, export, and return the stage's metrics."""
    hp: RewardConfig = job.root.reward
    if {"init", "policy"} <= job.parents.keys():
        require_same_tokenizer(job.parents["policy"], job.parents["init"], key="reward.init.policy")
    job.mixture.say_removed(job.say)
    # what can be refused is refused before hours of sampling
    tokenizer, model = _start(job)
    length = job.root.model.context_length
    if hp.share_prompt:  # a row then holds all completions of a prompt
        unless = "reward.share_prompt=false"
        require_packable(model, length=length, key=hp.context_key, unless=unless)
    add_trained_adapter(job, model, hp.lora, purpose=_of_member(job, "adapter"))
    found = _comparisons(job)
    train, held_out = found["train"], {s: found[s] for s in ("validation", "test")}
    loaders = [
        comparison_batches(
            records,
            tokenizer,
            hp=hp,
            max_length=length,
            seed=job.seed(_of_member(job, "data")),
            train=first,
            over_long=job.mixture.over_long,
            prefetch=2,
        )
        for records, first in ((_to_learn_from(job, train), True), (held_out["validation"], False))
    ]
    module = RewardModule(hp, model, job.optimizer(hp.optimizer), total_steps=len(loaders[0]))
    fit(
        job,
        module,
        StageData(*loaders),
        validate_every=hp.eval_every,
        checkpoint_every=hp.checkpoint_every,
    )
    model.eval()
    calibrate(job, model, tokenizer)
    metrics = (
        accuracies(job, model, tokenizer, held_out)
        | job.mixture.counts()
        | {
            "reward/prompts": float(len(train)),
            "reward/completions": float(sum(len(r["completions"]) for r in train)),
            "reward/completions_too_long": float(loaders[0].counts["completions_too_long"]),
            "reward/prompts_and_completions_cut": float(
                loaders[0].counts["prompts_and_completions_cut"]
            ),
            "reward/prompts_dropped": float(loaders[0].counts["prompts_dropped"]),
            "reward/parameters": float(parameters_of(model)),
            "reward/bias": float(model.config.reward_bias),  # type: ignore[union-attr]
            "reward/gain": float(model.config.reward_gain),  # type: ignore[union-attr]
        }
    )
    export(job, model, tokenizer, metrics, how_to_load="AutoModelForSequenceClassification")
    return metrics


def _start(job: Job) -> tuple[PreTrainedTokenizerFast, PreTrainedModel]:
    """Tokenizer and scalar-head model: from SFT, from an earlier reward model, or from the model's own weights."""
    root, seed = job.root, job.seed(_of_member(job, "weights"))
    if "init" in job.parents:
        parent = job.parents["init"]
        tokenizer = parent_tokenizer(job, "init")
        if parent.stage == "reward":
            scorer = load_scorer(parent.path, root.model)
            scorer.config.reward_bias, scorer.config.reward_gain = 0.0, 1.0
            return tokenizer, grow_embeddings(scorer, tokenizer)
        return tokenizer, scorer_with_new_head(job, parent.path, tokenizer, seed=seed)
    tokenizer = new_tokenizer(job)
    return tokenizer, scorer_of_own_weights(job, tokenizer, seed=seed)


def _comparisons(job: Job) -> dict[str, StoredRecords]:
    """Split → comparisons; those of an ensemble's first member where this is another one."""
    hp = job.root.reward
    counts = {"train": hp.prompts, "validation": hp.eval_prompts, "test": hp.eval_prompts}
    if "comparisons" not in job.parents:
        return {split: comparisons(job, split, count) for split, count in counts.items()}
    first = job.parents["comparisons"].path.parent
    found = {split: stored_comparisons(first, split) for split in counts}
    if None in found.values():
        raise UserError(
            f"{first} must hold the comparisons that the first reward model learned from, got none of some split"
        )
    return {split: records for split, records in found.items() if records is not None}


def _of_member(job: Job, purpose: str) -> str:
    """What a seed is for; each member of an ensemble has its own."""
    member = job.root.reward_source.member
    return f"{purpose} of member {member}" if member else purpose


def _to_learn_from(job: Job, records: StoredRecords) -> Sequence[Record]:
    ordered, foreign = _in_order(job, records), job.root.reward.foreign_completions
    seed = job.seed(_of_member(job, "foreign"))
    return WithForeign(ordered, foreign, seed=seed) if foreign else ordered


def _in_order(job: Job, records: StoredRecords) -> Sequence[Record]:
    """Training's comparisons. Members of an ensemble differ in the order, also in one epoch."""
    if not job.root.reward_source.member:
        return records
    return Reordered(
        records,
        torch.randperm(len(records), generator=job.generator(_of_member(job, "order"))).tolist(),
    )


def calibrate(job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Set bias (and gain) in the model's config so that demonstrations score 0 on average [I]."""
    model.config.reward_bias, model.config.reward_gain = 0.0, 1.0
    if not job.mixture.has("demonstration"):
        job.say("no demonstrations for training in the mix: the reward's bias stays 0")
        return
    size = job.mixture.size("demonstration", "train")
    asked = job.root.reward.calibration_demonstrations
    count = asked if size is None else min(size, asked)
    spoken = [
        {"prompt": r["messages"][:-1], "completions": [r["messages"][-1]["content"]], "ranks": [0]}
        for r in job.mixture.records("demonstration", "train", count)
    ]
    judged = scored(job, model, tokenizer, spoken, what="demonstrations")
    if not judged:
        job.say(f"no demonstration fits {job.root.reward.context_key}: the reward's bias stays 0")
        return
    scores = torch.cat([found for _, found in judged])
    model.config.reward_bias = scores.mean().item()
    if job.root.reward.calibrate_gain:
        if len(scores) == 1:
            job.say("only one demonstration has a score: the reward's gain stays 1")
            return
        model.config.reward_gain = 1 / max(scores.std().item(), 1e-6)
