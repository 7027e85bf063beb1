"""Scalar-head models as the tasks need them: fresh ones, trained ones, and the score that is made of them."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.data.tokenizer import tokenizer_fingerprint
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.loading import (
    frozen,
    grow_embeddings,
    load_scorer,
    new_policy,
    new_scorer,
    save,
)
from rlhf_lightning.rewards.build import WeightedReward, build_reward
from rlhf_lightning.runs.files import temporary_name
from rlhf_lightning.tasks.job import Job, require_same_tokenizer


def reward_of(job: Job, tokenizer: PreTrainedTokenizerFast) -> WeightedReward:
    """The score of `reward_source`, frozen, its learned part from the job's parents."""
    return build_reward(
        job.root.reward_source, lambda role: frozen(trained_scorer(job, role, tokenizer))
    )


def trained_scorer(job: Job, role: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """The reward model of a parent role."""
    model = job.root.reward.model or job.root.model
    return grow_embeddings(load_scorer(job.parents[role].path, model), tokenizer)


def scorer_with_new_head(
    job: Job, folder: str | Path, tokenizer: PreTrainedTokenizerFast, *, seed: int
) -> PreTrainedModel:
    """A reward model to be trained: the weights of a causal LM under a head of `reward.head_scale`."""
    scale = job.root.reward.head_scale
    scorer = new_scorer(folder, job.root.model, seed=seed, head_scale=scale)
    return grow_embeddings(scorer, tokenizer)


def scorer_of_own_weights(
    job: Job, tokenizer: PreTrainedTokenizerFast, *, seed: int
) -> PreTrainedModel:
    """A fresh head on the weights of `model.path`, or on random ones: those that `new_policy` makes of the seed."""
    model = job.root.model
    if model.path is not None:
        return scorer_with_new_head(job, model.path, tokenizer, seed=seed)
    folder = temporary_name(job.run.path / "random_policy")
    save(new_policy(model, tokenizer, seed=seed), tokenizer, folder)
    scorer = scorer_with_new_head(job, folder, tokenizer, seed=seed)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    return scorer


def require_tokenizer_of_rewards(
    job: Job, tokenizer: PreTrainedTokenizerFast, *, key: str, policy: str | None
) -> None:
    """Raises: UserError if a reward model of the score would read other tokens than the policy writes.

    `policy` is the role of the parent that the tokenizer is from; None: it is the model's own.
    """
    for role in job.root.reward_source.roles:
        reward = job.parents[role]
        if policy is not None:
            require_same_tokenizer(job.parents[policy], reward, key=key)
        elif tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(reward.path):
            raise UserError(
                f"{key} must have the tokenizer of the model, got {str(reward.path)!r} with another one"
            )
