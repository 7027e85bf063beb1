"""`task=pretrain` and `task=sft`: the same loss, on raw text or on demonstrations."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.config import SFTConfig
from rlhf_lightning.data.batching import sft_batches
from rlhf_lightning.data.datamodule import StageData
from rlhf_lightning.models.loading import grow_embeddings, load_policy, new_policy, parameters_of
from rlhf_lightning.models.packing import require_packable
from rlhf_lightning.stages.sft import SFTModule
from rlhf_lightning.tasks.fit import fit
from rlhf_lightning.tasks.job import (
    Job,
    add_trained_adapter,
    export,
    new_tokenizer,
    parent_tokenizer,
)


def run(job: Job) -> dict[str, float]:
    """Train, export, and return the stage's metrics."""
    stage = job.task
    hp: SFTConfig = getattr(job.root, stage)
    kind = "text" if stage == "pretrain" else "demonstration"
    job.mixture.say_removed(job.say)
    job.say_share(kind, hp.examples, key=f"{stage}.examples")
    tokenizer, model = _start(job)
    require_packable(model, length=hp.max_length, key=f"{stage}.max_length")
    add_trained_adapter(job, model, hp.lora)
    train, validation = (
        sft_batches(
            job.mixture, tokenizer, kind=kind, hp=hp, split=split, seed=job.seed("data"), prefetch=2
        )
        for split in ("train", "validation")
    )
    module = SFTModule(hp, model, job.optimizer(hp.optimizer), total_steps=len(train))
    trainer = fit(
        job,
        module,
        StageData(train, validation),
        validate_every=hp.eval_every,
        checkpoint_every=hp.checkpoint_every,
    )
    trainer.validate(module, validation, verbose=False)
    metrics = {
        f"{stage}/val_loss": module.val_loss,
        f"{stage}/tokens": float(module.tokens_seen),
        f"{stage}/examples": float(train.counts["examples"]),
        f"{stage}/examples_too_long": float(train.counts["too_long"]),
        f"{stage}/examples_cut": float(train.counts["cut"]),
        f"{stage}/replies_not_learnt": float(train.counts["replies_not_learnt"]),
        f"{stage}/parameters": float(parameters_of(model)),
        f"{stage}/trained_parameters": float(module.trained_parameters),
    } | job.mixture.counts()
    export(job, model, tokenizer, metrics)
    return metrics


def _start(job: Job) -> tuple[PreTrainedTokenizerFast, PreTrainedModel]:
    """Tokenizer and weights to start from: the parent's, or the model's own."""
    if "init" in job.parents:
        tokenizer = parent_tokenizer(job, "init")
        policy = load_policy(job.parents["init"].path, job.root.model)
        return tokenizer, grow_embeddings(policy, tokenizer)
    tokenizer = new_tokenizer(job)
    return tokenizer, new_policy(job.root.model, tokenizer, seed=job.seed("weights"))
