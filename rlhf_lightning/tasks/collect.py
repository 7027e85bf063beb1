"""Collection of comparisons: K completions of the current policy for each prompt, ranked by the source's labelers."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.callbacks.progress import counted
from rlhf_lightning.config import ModelConfig, RewardConfig
from rlhf_lightning.data.batching import Prompt, first_prompts
from rlhf_lightning.data.stored import StoredRecords, store
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.loading import frozen, grow_embeddings, load_policy
from rlhf_lightning.processes import gather, in_order, is_first, share, wait_for_all, world_size
from rlhf_lightning.rewards.functions import call_function, load_function
from rlhf_lightning.stages.updates import require_finite
from rlhf_lightning.strategies.weights import place_frozen
from rlhf_lightning.tasks.fit import device_of
from rlhf_lightning.tasks.job import Job, parent_tokenizer
from rlhf_lightning.tasks.sampling import speak

Ranker = Callable[[Prompt, list[str]], list[int]]
"""A prompt and different completions → their ranks, 0 = best."""

WINDOW = 16
"""Batches of completions that are sorted by length together."""
RANKED_AT_ONCE = 16
"""Prompts that each process ranks before all tell each other."""


def comparisons(job: Job, split: str, count: int) -> StoredRecords:
    """The run's comparisons of a split: those on disk, or new ones."""
    path = _path(job.run.path, split)
    # the others do not even look: a network file system would remember for them that nothing was there
    if gather(is_first() and path.exists())[0]:
        return StoredRecords(path)
    records = _sampled(job, split, count) if "policy" in job.parents else _spoken(job, split, count)
    if is_first():
        store(path, records)
    elif "policy" in job.parents:
        deque(records, maxlen=0)  # this process's share of the sampling
    wait_for_all()
    stored = StoredRecords(path)
    if len(stored) == 0:
        raise UserError(f"mix.sources: no comparisons in the {split} split, got 0 records")
    job.say(
        f"{len(stored)} prompts with {sum(len(r['completions']) for r in stored)} completions for {split}"
    )
    return stored


def stored_comparisons(run: Path, split: str) -> StoredRecords | None:
    """The comparisons of a split that a run has on disk."""
    path = _path(run, split)
    return StoredRecords(path) if path.exists() else None


def _path(run: Path, split: str) -> Path:
    return run / "data" / f"comparisons_{split}.jsonl"


def _spoken(job: Job, split: str, count: int) -> Iterator[dict[str, Any]]:
    """The sources' own comparisons."""
    if split == "train":
        job.say_share("comparison", count, key="reward.prompts")
    size = job.mixture.size("comparison", split)
    count = count if size is None else min(count, size)
    start = job.round_start("comparison") if split == "train" else 0
    return job.mixture.records("comparison", split, count, start=start)


def _sampled(job: Job, split: str, count: int) -> Iterator[dict[str, Any]]:
    hp, tokenizer = job.root.reward, parent_tokenizer(job, "policy")
    start = job.round_start("prompt") if split == "train" else 0
    prompts = first_prompts(
        job.mixture,
        tokenizer,
        split=split,
        count=count,
        max_prompt_tokens=job.root.ppo.max_prompt_tokens,
        say=job.say,
        start=start,
    )
    model = _loaded_as(job)
    policy = grow_embeddings(load_policy(job.parents["policy"].path, model), tokenizer)
    place_frozen(frozen(policy), job.root.strategy, device_of(job))
    rng = random.Random(job.seed(f"completions of {split}"))
    sizes = [rng.randint(hp.min_completions, hp.max_completions) for _ in prompts]
    with counted(f"reward: completions for {split}", sum(sizes)) as done:
        texts = _completions(job, policy, tokenizer, prompts, sizes, split, done)
        spoken = (
            (prompt, [next(texts) for _ in range(size)])
            for prompt, size in zip(prompts, sizes, strict=True)
        )
        yield from _ranked_in_shares(spoken, _ranker(job, tokenizer, split))


def _loaded_as(job: Job) -> ModelConfig:
    """How the policy is loaded: job.root.model is the reward model's, which may be of another size and precision."""
    own = (job.parents["policy"].manifest or {}).get("config", {}).get("model", {})
    # what its numbers depend on; what is allowed to run, and where, is this command's to say
    as_trained = {key: own[key] for key in ("dtype", "attention") if key in own}
    tokens = job.root.ppo.max_prompt_tokens + job.root.reward.max_response_tokens
    return replace(job.root.model, context_length=max(tokens, 8), **as_trained)


def _completions(
    job: Job,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    sizes: Sequence[int],
    split: str,
    done: Callable[[int], None],
) -> Iterator[str]:
    """Texts in order: `sizes[0]` of the first prompt, `sizes[1]` of the second, ..."""
    hp: RewardConfig = job.root.reward
    rows, generator = hp.rollout_batch_size, job.generator(f"sampling of {split}")
    at_once = rows * world_size()
    repeated = [p for p, size in zip(prompts, sizes, strict=True) for _ in range(size)]
    for start in range(0, len(repeated), WINDOW * rows):
        window = repeated[start : start + WINDOW * rows]
        # prompts of like length share a batch: little padding is computed
        order = sorted(range(len(window)), key=lambda i: len(window[i].ids))
        texts = [""] * len(window)
        for first in range(0, len(order), at_once):
            job.stop.check()
            chosen = order[first : first + at_once]
            spoken = speak(
                policy,
                tokenizer,
                [window[i] for i in chosen],
                max_response_tokens=hp.max_response_tokens,
                temperature=hp.temperature,
                generator=generator,
                device=device_of(job),
            )
            for i, text in zip(chosen, spoken, strict=True):
                texts[i] = text
            done(len(chosen))
        yield from texts


def _ranker(job: Job, tokenizer: PreTrainedTokenizerFast, split: str) -> Ranker:
    """Ranks by the functions of `reward.rank_by`, else by the source's labelers of the split."""
    parts = {
        name: (
            part.weight,
            load_function(str(part.target), part.args, key=f"reward.rank_by.{name}"),
        )
        for name, part in job.root.reward.rank_by.items()
    }

    def known(prompt: Prompt, texts: list[str]) -> list[int]:
        asked = str(tokenizer.decode(prompt.ids))
        scores = [
            sum(
                weight * call_function(f, asked, text, prompt.record, key=f"reward.rank_by.{name}")
                for name, (weight, f) in parts.items()
            )
            for text in texts
        ]
        require_finite(
            torch.tensor(scores, dtype=torch.float64),
            where=f"reward.rank_by: prompt {prompt.index}",
            what="score",
            then="",
        )
        order = sorted(set(scores), reverse=True)
        return [order.index(score) for score in scores]

    def labeled(prompt: Prompt, texts: list[str]) -> list[int]:
        ranks = job.mixture.rank(prompt.record, texts, split=split, index=prompt.index)
        if ranks is None:
            raise UserError(
                "reward.completions must be speakers for a mix whose sources have no labelers, got 'policy'"
            )
        return ranks

    return known if parts else labeled


def _ranked_in_shares(
    spoken: Iterator[tuple[Prompt, list[str]]], rank: Ranker
) -> Iterator[dict[str, Any]]:
    """Comparison records in order, the same in all processes; each ranks its share of them."""
    while chunk := list(islice(spoken, RANKED_AT_ONCE * world_size())):
        own = [_ranked(*chunk[i], rank) for i in share(len(chunk))]
        yield from in_order(gather(own), len(chunk))


def _ranked(prompt: Prompt, completions: list[str], rank: Ranker) -> dict[str, Any]:
    """A comparison record. Equal texts tie: a labeler sees each text once."""
    different = list(dict.fromkeys(completions))
    rank_of = dict(zip(different, rank(prompt, different), strict=True))
    record = {
        key: prompt.record[key] for key in ("prompt", "source", "meta") if key in prompt.record
    }
    return {**record, "completions": completions, "ranks": [rank_of[text] for text in completions]}
