"""`task=ppo`: policy and reference from SFT, value and score from the reward model, then the iterations."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.callbacks.showing import show_figure
from rlhf_lightning.config import PPOConfig
from rlhf_lightning.data.batching import first_prompts, prompt_batches
from rlhf_lightning.data.collate import collate_prompts
from rlhf_lightning.data.datamodule import StageData
from rlhf_lightning.data.loader import BatchLoader
from rlhf_lightning.evaluation.figures import score_over_kl
from rlhf_lightning.models.loading import (
    grow_embeddings,
    load_policy,
    new_policy,
    numbers_of,
    parameters_of,
)
from rlhf_lightning.models.packing import require_packable
from rlhf_lightning.models.tokens import pad_id
from rlhf_lightning.processes import is_first
from rlhf_lightning.rewards.build import build_reward
from rlhf_lightning.runs.curves import read_metrics
from rlhf_lightning.stages.ppo import PPOModule
from rlhf_lightning.tasks.fit import fit
from rlhf_lightning.tasks.job import (
    Job,
    export,
    new_tokenizer,
    parent_tokenizer,
)
from rlhf_lightning.tasks.ppo_models import ppo_models
from rlhf_lightning.tasks.scorers import require_tokenizer_of_rewards


def run(job: Job) -> dict[str, float]:
    """Train, export, and return the stage's metrics (on held-out prompts of the validation split)."""
    hp: PPOConfig = job.root.ppo
    job.mixture.say_removed(job.say)
    tokenizer, policy = _start(job)
    if hp.ptx.coef > 0:
        length = hp.max_prompt_tokens + hp.max_response_tokens
        key = "ppo.max_prompt_tokens + ppo.max_response_tokens"
        require_packable(policy, length=length, key=key, unless="ppo.ptx.coef=0")
    train = prompt_batches(job.mixture, tokenizer, hp=hp, start=job.round_start("prompt"))
    fixed = first_prompts(
        job.mixture,
        tokenizer,
        split="validation",
        count=hp.eval_prompts,
        max_prompt_tokens=hp.max_prompt_tokens,
        say=job.say,
    )
    chunks = [
        fixed[i : i + hp.rollout_batch_size] for i in range(0, len(fixed), hp.rollout_batch_size)
    ]
    validation = BatchLoader(
        lambda i: collate_prompts(
            [p.ids for p in chunks[i]], [p.record for p in chunks[i]], pad_id(tokenizer)
        ),
        len(chunks),
    )
    source = job.root.reward_source
    models = ppo_models(job, policy, tokenizer, source.roles)
    module = PPOModule(
        hp,
        policy=models.policy,
        value=models.value,
        reference=models.reference,
        reward=build_reward(source, models.learned.__getitem__),
        tokenizer=tokenizer,
        optimizer=job.optimizer(hp.optimizer),
        seed=job.seed("sampling"),
        gold=_gold(job, [prompt.record for prompt in fixed]),
    )
    trainer = fit(
        job,
        module,
        StageData(train, validation),
        validate_every=hp.eval_every,
        checkpoint_every=hp.checkpoint_every,
        validate_first=True,
    )
    done = module.progress
    if done.is_over(hp) and done.iteration < hp.iterations:
        over = "" if hp.stop_at_kl_window == 1 else f", mean of {hp.stop_at_kl_window} iterations,"
        job.say(
            f"ended after iteration {done.iteration} of {hp.iterations}: a KL of {done.mean_kl:.3g} nats{over} is more"
            f" than ppo.stop_at_kl={hp.stop_at_kl:g}"
        )
    module.export_average()  # the last validation is of the average, as the export is
    if hp.ema_decay is not None:
        left = hp.ema_decay**done.iteration
        job.say(
            f"the policy is its average now, {left:.0%} of which are the weights that it began with"
        )
    if module.ema is not None or module.validated_at != done.iteration:
        trainer.validate(module, validation, verbose=False)
    figure = score_over_kl(read_metrics(job.run.metrics_csv)) if is_first() else None
    if figure is not None:
        show_figure(trainer.loggers, "score_over_kl", figure, done.iteration)
    metrics = (
        _final(module.validation_metrics)
        | job.mixture.counts()
        | {
            "ppo/iterations": float(done.iteration),
            "ppo/episodes": float(module.progress.episodes),
            "ppo/updates": float(module.progress.updates),
            "ppo/final_kl_coef": module.progress.kl_coef,
            "ppo/skipped_minibatches": float(module.progress.skipped_minibatches),
            "ppo/early_stops": float(module.progress.early_stops),
            "ppo/prompts_too_long": float(train.counts["prompts_too_long"]),
            "ppo/prompts_cut": float(train.counts["prompts_cut"]),
            "ppo/parameters": float(parameters_of(module.policy)),
            "ppo/trained_parameters": float(sum(numbers_of(p) for p in module.actor)),
        }
    )
    export(job, module.policy, tokenizer, metrics)
    return metrics


def _start(job: Job) -> tuple[PreTrainedTokenizerFast, PreTrainedModel]:
    """Tokenizer and policy: the parent's, or the model's own. Reward models must read the same tokens."""
    model, key = job.root.model, "ppo.init.reward"
    if "policy" in job.parents:
        parent, tokenizer = job.parents["policy"], parent_tokenizer(job, "policy")
        require_tokenizer_of_rewards(job, tokenizer, key=key, policy="policy")
        return tokenizer, grow_embeddings(load_policy(parent.path, model), tokenizer)
    tokenizer = new_tokenizer(job)
    require_tokenizer_of_rewards(job, tokenizer, key=key, policy=None)
    return tokenizer, new_policy(model, tokenizer, seed=job.seed("weights"))


def _final(validation: dict[str, float]) -> dict[str, float]:
    """The last validation under the names that `task=evaluate` uses, with `validation`: those are of the test split."""
    names = {"score": "reward_score"}
    short = {name.removeprefix("val/"): value for name, value in validation.items()}
    return {f"ppo/validation/{names.get(name, name)}": value for name, value in short.items()}


def _gold(job: Job, fixed: list[dict[str, Any]]) -> Any:
    """Gold totals for watching, where the mix knows them of every fixed prompt."""
    without = sum(job.mixture.gold(record, "") is None for record in fixed)
    if 0 < without < len(fixed):
        job.say(f"{without} of {len(fixed)} validation prompts have no gold score: none is watched")
    if without:
        return None

    def gold(records: list[dict[str, Any]], responses: list[str]) -> list[float]:
        return [job.mixture.gold(r, t).total for r, t in zip(records, responses, strict=True)]

    return gold
