"""`task=evaluate`: what each model says to held-out prompts, measured by gold, reward model, KL and text statistics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.callbacks.progress import counted
from rlhf_lightning.config import EvaluateConfig
from rlhf_lightning.data.batching import Prompt, first_prompts
from rlhf_lightning.data.collate import collate_prompts, encode_prompts
from rlhf_lightning.data.stored import store
from rlhf_lightning.evaluation.known import gains
from rlhf_lightning.evaluation.metrics import Reading, model_metrics, win_rates
from rlhf_lightning.evaluation.report import turns_of
from rlhf_lightning.evaluation.samples import ModelSamples
from rlhf_lightning.evaluation.summary import summary_lines
from rlhf_lightning.functional.kl import kl_k1, kl_k3
from rlhf_lightning.functional.paired import sign_flip_p
from rlhf_lightning.models.loading import (
    frozen,
    grow_embeddings,
    load_policy,
    new_policy,
)
from rlhf_lightning.models.tokens import decode, pad_id
from rlhf_lightning.processes import counts_once, gather, in_order, is_first, share, world_size
from rlhf_lightning.rewards.base import (
    ScoreRequest,
    statistics_of,
    taken_statistics,
)
from rlhf_lightning.rewards.build import WeightedReward, build_known
from rlhf_lightning.runs.files import write_text
from rlhf_lightning.stages.rollout import Sampling, collect
from rlhf_lightning.stages.updates import require_finite
from rlhf_lightning.strategies.weights import place_frozen
from rlhf_lightning.tasks.fit import device_of
from rlhf_lightning.tasks.job import (
    Job,
    new_tokenizer,
    parent_tokenizer,
    require_same_tokenizer,
    seed_of,
)
from rlhf_lightning.tasks.sampling import speak
from rlhf_lightning.tasks.scorers import require_tokenizer_of_rewards, reward_of


def run(job: Job) -> dict[str, float]:
    """Sample with every model, judge, and return all metrics; samples and conversations stay in the run."""
    hp: EvaluateConfig = job.root.evaluate
    tokenizer = _tokenizer(job)
    prompts = first_prompts(
        job.mixture,
        tokenizer,
        split="test",
        count=hp.prompts,
        max_prompt_tokens=job.root.ppo.max_prompt_tokens,
        say=job.say,
    )
    if len(prompts) < hp.prompts:
        job.say(f"{len(prompts)} test prompts there are, where evaluate.prompts={hp.prompts}")
    judges = _judges(job, tokenizer)
    reference = _load(job, hp.reference, tokenizer)
    told: dict[str, float] = {}
    found = []
    for name in hp.models:
        found.append(_samples(job, name, tokenizer, prompts, reference, judges))
        told |= taken_statistics(judges.reward, name)
        for score, judge in judges.known.items():
            told |= {
                f"{name}/known_{score}_{statistic}": value
                for statistic, value in statistics_of(judge).items()
            }
    if is_first():
        store(job.run.path / "samples.jsonl", (row for samples in found for row in _rows(samples)))
        turns = [asdict(turn) for turn in turns_of(found, hp.samples_shown)]
        write_text(job.run.path / "conversations.json", json.dumps(turns, ensure_ascii=False))
    metrics = told
    for samples in found:
        metrics |= model_metrics(samples, _reading(job))
    by_name = {samples.name: samples for samples in found}
    p_value = lambda differences: sign_flip_p(torch.tensor(differences))  # noqa: E731
    metrics = metrics | win_rates(by_name) | gains(by_name, hp.reference, p_value)
    for line in summary_lines(metrics, list(by_name)):
        job.say(line)
    return metrics


@dataclass
class _Judges:
    """What gives responses their scores."""

    reward: WeightedReward
    known: dict[str, nn.Module]


def _judges(job: Job, tokenizer: PreTrainedTokenizerFast) -> _Judges:
    """The score that PPO maximises, and the known scores, on the device."""
    known = {
        name: build_known(part, key=f"evaluate.known.{name}")
        for name, part in job.root.evaluate.known.items()
    }
    judges = _Judges(reward_of(job, tokenizer), known)
    for module in (judges.reward, *known.values()):
        place_frozen(module, job.root.strategy, device_of(job))
    return judges


def _tokenizer(job: Job) -> PreTrainedTokenizerFast:
    """The one that every model reads; KL and scores would mean nothing otherwise."""
    roles = [role for role in job.parents if role.startswith("models.")]
    if not roles:
        tokenizer = new_tokenizer(job)
        require_tokenizer_of_rewards(job, tokenizer, key="evaluate.reward", policy=None)
        return tokenizer
    first = job.parents[roles[0]]
    for role in roles[1:]:
        require_same_tokenizer(first, job.parents[role], key=f"evaluate.{role}")
    tokenizer = parent_tokenizer(job, roles[0])
    require_tokenizer_of_rewards(job, tokenizer, key="evaluate.reward", policy=roles[0])
    return tokenizer


def _load(job: Job, name: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    parent = job.parents.get(f"models.{name}")
    if parent is None:  # the model's own weights
        # those that SFT begins with, where it has no parent either
        seed = seed_of(job.root.seed, "sft", 1, "weights")
        model = new_policy(job.root.model, tokenizer, seed=seed)
    else:
        model = grow_embeddings(load_policy(parent.path, job.root.model), tokenizer)
    place_frozen(frozen(model), job.root.strategy, device_of(job))
    return model


def _samples(
    job: Job,
    name: str,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    reference: PreTrainedModel,
    judges: _Judges,
) -> ModelSamples:
    """One response to each prompt and to its rewording, with score and KL."""
    hp, device = job.root.evaluate, device_of(job)
    policy = reference if name == hp.reference else _load(job, name, tokenizer)
    generator = job.generator(f"samples of {name}")
    # the sampler's log-probabilities differ from the reference's by rounding: in half precision too much for a KL
    recompute = next(policy.parameters()).dtype != torch.float32
    sampling = Sampling(hp.max_response_tokens, hp.temperature, hp.batch_size, tokenizer, recompute)
    records = [p.record for p in prompts]
    batch = collate_prompts([p.ids for p in prompts], records, pad_id(tokenizer)).to(device)
    job.stop.check()
    with counted(f"evaluate: {name}", len(prompts)) as done:

        def after(rows: int) -> None:
            done(rows)
            job.stop.check()

        rollout = collect(
            batch, policy, reference, None, judges.reward, sampling, generator, after_chunk=after
        )
    require_finite(rollout.scores, where=f"evaluate.models.{name}", what="score", then="")
    pair, mask = (rollout.logprobs, rollout.ref_logprobs), rollout.response_mask
    texts = decode(tokenizer, rollout.response_ids, mask)
    request = ScoreRequest(
        rollout.prompt_ids, rollout.prompt_mask, rollout.response_ids, mask, records, tokenizer
    )
    golds = [job.mixture.gold(r, t) for r, t in zip(records, texts, strict=True)]
    if 0 < golds.count(None) < len(golds):
        job.say(f"{golds.count(None)} of {len(golds)} prompts have no gold score: none is given")
    return ModelSamples(
        name=name,
        prompts=records,
        responses=texts,
        response_tokens=mask.sum(1).tolist(),
        ended=rollout.ended.tolist(),
        gold=None if None in golds else golds,
        scores=rollout.scores.tolist(),
        kl_k1=kl_k1(*pair).masked_fill(~mask, 0.0).sum(1).tolist(),
        kl_k3=kl_k3(*pair).masked_fill(~mask, 0.0).sum(1).tolist(),
        known={
            known: _finite(_judged(judge, request), f"evaluate.known.{known} of {name}")
            for known, judge in judges.known.items()
        },
        reworded_responses=_reworded(job, name, policy, tokenizer, records, generator),
    )


def _finite(scores: list[float], where: str) -> list[float]:
    require_finite(torch.tensor(scores), where=where, what="score", then="")
    return scores


def _judged(judge: nn.Module, request: ScoreRequest) -> list[float]:
    """A score for each response; each process judges its share."""
    if world_size() == 1:
        return judge(request).tolist()
    count = len(request.records)
    rows = torch.tensor(share(count))
    names = ("prompt_ids", "prompt_mask", "response_ids", "response_mask")
    own = ScoreRequest(
        *(getattr(request, name)[rows.to(request.prompt_ids.device)] for name in names),
        records=[request.records[i] for i in rows.tolist()],
        tokenizer=request.tokenizer,
        counted=torch.tensor(counts_once(count)),
    )
    return in_order(gather(judge(own).tolist()), count)


def _reworded(
    job: Job,
    name: str,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    records: Sequence[dict[str, Any]],
    generator: torch.Generator,
) -> list[str | None] | None:
    """Responses to the same requests in other words; None where the mix has none."""
    hp, others = job.root.evaluate, [job.mixture.reworded(record) for record in records]
    ids = encode_prompts(tokenizer, [o["prompt"] for o in others if o is not None])
    known = [i for i, other in enumerate(others) if other is not None]
    fits = [
        Prompt(i, row, records[i])
        for i, row in zip(known, ids, strict=True)
        if len(row) <= job.root.ppo.max_prompt_tokens
    ]
    if not fits:
        return None
    if len(fits) < len(records):
        job.say(f"{len(records) - len(fits)} prompts have no rewording that fits")
    found: list[str | None] = [None] * len(records)
    with counted(f"evaluate: {name}, reworded", len(fits)) as done:
        at_once = hp.batch_size * world_size()
        for start in range(0, len(fits), at_once):
            job.stop.check()
            chunk = fits[start : start + at_once]
            texts = speak(
                policy,
                tokenizer,
                chunk,
                max_response_tokens=hp.max_response_tokens,
                temperature=hp.temperature,
                generator=generator,
                device=device_of(job),
            )
            for prompt, text in zip(chunk, texts, strict=True):
                found[prompt.index] = text
            done(len(chunk))
    return found


def _reading(job: Job) -> Reading:
    mixture = job.mixture
    if not mixture.knows_refusals:
        return Reading(mixture.answer_items)
    return Reading(mixture.answer_items, mixture.is_refusal, mixture.should_refuse)


def _rows(samples: ModelSamples) -> list[dict[str, Any]]:
    """samples.jsonl: one line for each model and prompt."""
    return [
        {
            "model": samples.name,
            "prompt": record["prompt"],
            "response": samples.responses[i],
            "reworded_response": (samples.reworded_responses or [None] * len(samples))[i],
            "score": samples.scores[i] if samples.scores else None,
            "kl_k1": samples.kl_k1[i] if samples.kl_k1 else None,
            "gold": samples.gold[i].total if samples.gold else None,
        }
        | ({"known": {k: v[i] for k, v in samples.known.items()}} if samples.known else {})
        for i, record in enumerate(samples.prompts)
    ]
