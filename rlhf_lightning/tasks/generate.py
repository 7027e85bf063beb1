"""`task=generate`: responses of a policy to the prompts of a file, or to one, with the scores of `reward_source`.

Rows go in input order. The uniform numbers of a row depend on the seed and on its place among the prompts that fit,
not on `batch_size`: prompts are sorted by length inside windows of a fixed size, and the generator is drawn from in
that order.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.callbacks.progress import counted
from rlhf_lightning.config import GenerateConfig, RootConfig
from rlhf_lightning.data.collate import collate_prompts
from rlhf_lightning.data.encode import encode_prompts
from rlhf_lightning.data.mixture import Mixture
from rlhf_lightning.data.prompt_file import PromptRow, prompt_row, read_prompts, require_prompt_file
from rlhf_lightning.data.tokenizer import prepare_tokenizer, tokenizer_fingerprint
from rlhf_lightning.errors import Interrupted, UserError
from rlhf_lightning.models.generation import draw_uniforms, sample
from rlhf_lightning.models.loading import (
    frozen,
    grow_embeddings,
    load_policy,
    load_scorer,
    load_tokenizer,
    new_policy,
)
from rlhf_lightning.models.tokens import decode, eos_id, pad_id
from rlhf_lightning.plan import StagePlan
from rlhf_lightning.processes import gather, in_order, is_first, share, world_size
from rlhf_lightning.rewards.base import ScoreRequest
from rlhf_lightning.rewards.build import WeightedReward, build_reward
from rlhf_lightning.runs import Artifact, Stop
from rlhf_lightning.stages.updates import require_finite
from rlhf_lightning.strategies.weights import place_frozen
from rlhf_lightning.tasks.generate_output import printed, require_place, written
from rlhf_lightning.tasks.job import device_for, own_tokenizer, seed_of

log = logging.getLogger("rlhf_lightning")

_UNUSABLE = "; its model's weights are of no use, nothing is written"
WINDOW = 2048
"""Rows that are sorted by length together; fixed, so that samples do not depend on the batch size."""

Row = dict[str, Any]


@dataclass
class Counts:
    """What happened to the input."""

    prompts: int = 0
    replies_left_out: int = 0
    too_long: int = 0
    places: list[str] = field(default_factory=list)
    """Where the first of those are (file:line)."""
    responses: int = 0


@dataclass(frozen=True)
class Wanted:
    """One response that is to be sampled."""

    row: PromptRow
    ids: list[int]
    sample: int


def run(plan: StagePlan, mixture: Mixture, stop: Stop) -> dict[str, float]:
    """Answer every prompt that fits; returns counts.

    Raises: UserError before weights are loaded where the input is bad; Interrupted, which leaves no file.
    """
    root = plan.root
    counts = Counts()
    if root.input is not None:
        require_prompt_file(Path(root.input))
        require_place(root.output, root.input, overwrite=root.generate.overwrite)
        # a bad row ends the task now, not after an hour of sampling
        for row in read_prompts(Path(root.input)):
            counts.prompts += 1
            counts.replies_left_out += row.reply_left_out
        if not counts.prompts:
            raise UserError(f"input must hold at least one prompt, got none in {root.input!r}")
    else:
        require_place(root.output, None, overwrite=root.generate.overwrite)
        counts.prompts = 1
    speaker = Speaker(plan, mixture, stop, counts)
    try:
        rows = speaker.rows(_input(root))
        if not is_first():
            deque(rows, maxlen=0)  # this process's share of the sampling
        elif root.output is None:
            printed(rows, scored=speaker.score is not None)
        else:
            with counted("generate", counts.prompts * root.generate.samples) as advance:
                written(
                    Path(root.output), _watched(rows, advance), overwrite=root.generate.overwrite
                )
    except Interrupted as error:
        raise Interrupted(error.signum, "nothing was written") from None
    if is_first():
        _say(root, counts)
    return {
        "generate/prompts": counts.prompts,
        "generate/prompts_too_long": counts.too_long,
        "generate/responses": counts.responses,
    }


class Speaker:
    """The policy and the score, loaded, and how rows are made with them."""

    def __init__(self, plan: StagePlan, mixture: Mixture, stop: Stop, counts: Counts) -> None:
        self.root, self.stop, self.counts = plan.root, stop, counts
        self.hp: GenerateConfig = plan.root.generate
        self.device = device_for(plan.root.trainer)
        policy, reward = (_artifact(plan, role) for role in ("policy", "reward"))
        self.tokenizer = _tokenizer(self.root, policy, mixture)
        if reward is not None:
            _require_tokenizer_of(self.tokenizer, reward, self.root)
        self.seed = seed_of(self.root.seed, "generate", 1, "samples")
        own = seed_of(self.root.seed, "generate", 1, "weights")
        # the scorer first: where it cannot be loaded, nothing larger was
        self.score, self.learned = self._score(reward), reward is not None
        _say_who(policy, self.root)
        self.policy = self._placed(
            new_policy(self.root.model, self.tokenizer, seed=own)
            if policy is None
            else load_policy(policy.path, self.root.model)
        )

    def _placed(self, model: PreTrainedModel) -> PreTrainedModel:
        model = frozen(grow_embeddings(model, self.tokenizer))
        place_frozen(model, self.root.strategy, self.device)
        return model

    def _score(self, given: Artifact | None) -> WeightedReward | None:
        """The whole score, as PPO and the evaluation have it; None if its learned part is not given, or none wanted."""
        source, model = self.root.reward_source, self.root.reward.model or self.root.model
        if self.hp.init.reward == "none" or (given is None and source.learned is not None):
            return None

        def learned(_: str) -> nn.Module:
            assert given is not None  # else there is no learned part
            return frozen(grow_embeddings(load_scorer(given.path, model), self.tokenizer))

        score = build_reward(source, learned)
        place_frozen(score, self.root.strategy, self.device)
        return score

    @property
    def _end_with_eos(self) -> bool:
        learned = self.root.reward_source.learned
        return learned is not None and learned.end_with_eos

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt that is answered."""
        given, room = self.hp.max_prompt_tokens, self.root.model.context_length
        if self.learned:
            reads = self.root.reward.model or self.root.model
            room = min(room, reads.context_length - self._end_with_eos)
        room -= self.hp.max_response_tokens
        return room if given is None else min(given, room)

    def rows(self, prompts: Iterable[PromptRow]) -> Iterator[Row]:
        """The output rows, in input order."""
        generator = torch.Generator().manual_seed(self.seed)
        wanted = self._wanted(prompts)
        while window := list(itertools.islice(wanted, WINDOW)):
            # prompts of like length share a batch: little padding is computed
            order = sorted(range(len(window)), key=lambda i: len(window[i].ids))
            found: dict[int, Row] = {}
            at_once = self.hp.batch_size * world_size()
            for start in range(0, len(order), at_once):
                self.stop.check()
                chosen = order[start : start + at_once]
                made = self._sampled([window[i] for i in chosen], generator)
                found |= dict(zip(chosen, made, strict=True))
            self.counts.responses += len(window)
            yield from (found[i] for i in range(len(window)))

    def _wanted(self, prompts: Iterable[PromptRow]) -> Iterator[Wanted]:
        rows = iter(prompts)
        while chunk := list(itertools.islice(rows, 256)):
            encoded = encode_prompts(self.tokenizer, [row.record["prompt"] for row in chunk])
            for row, ids in zip(chunk, encoded, strict=True):
                if len(ids) > self.longest_prompt:
                    self._too_long(row, len(ids))
                    continue
                yield from (Wanted(row, ids, number) for number in range(self.hp.samples))

    def _too_long(self, row: PromptRow, tokens: int) -> None:
        self.counts.too_long += 1
        if self.counts.too_long <= 5:
            self.counts.places.append(row.where)
        if self.counts.too_long == self.counts.prompts:  # that was the last hope
            raise UserError(
                f"generate.max_prompt_tokens must leave room for some of the prompts, got {self.longest_prompt} "
                f"(model.context_length={self.root.model.context_length}, "
                f"generate.max_response_tokens={self.hp.max_response_tokens}): {row.where} has {tokens} tokens"
            )

    @torch.no_grad()
    def _sampled(self, wanted: list[Wanted], generator: torch.Generator) -> list[Row]:
        """One output row for each of a batch; with several processes each makes its share."""
        uniforms = draw_uniforms(len(wanted), self.hp.max_response_tokens, generator)
        rows = share(len(wanted))
        made = self._made([wanted[i] for i in rows], uniforms[rows])
        return in_order(gather(made), len(wanted))

    def _made(self, wanted: list[Wanted], uniforms: torch.Tensor) -> list[Row]:
        records = [item.row.record for item in wanted]
        batch = collate_prompts([item.ids for item in wanted], records, pad_id(self.tokenizer))
        batch = batch.to(self.device)
        said = sample(
            self.policy,
            batch,
            max_new_tokens=self.hp.max_response_tokens,
            temperature=self.hp.temperature,
            eos_id=eos_id(self.tokenizer),
            pad_id=pad_id(self.tokenizer),
            uniforms=uniforms,
        )
        require_finite(said.logprobs, where="generate", what="log-probability", then=_UNUSABLE)
        columns = {
            "response": decode(self.tokenizer, said.ids, said.mask),
            "response_tokens": said.mask.sum(1).tolist(),
            "ended": said.ended.tolist(),
            "logprob": said.logprobs.sum(1).tolist(),
        }
        if self.score is not None:
            request = ScoreRequest(
                batch.ids, batch.mask, said.ids, said.mask, records, self.tokenizer
            )
            scores = self.score(request)
            require_finite(scores, where="generate", what="score", then=_UNUSABLE)
            columns["score"] = scores.tolist()
        made = zip(*columns.values(), strict=True)
        return [
            {
                "index": item.row.index,
                "sample": item.sample,
                "prompt": item.row.record["prompt"],
                **dict(zip(columns, values, strict=True)),
            }
            for item, values in zip(wanted, made, strict=True)
        ]


def _input(root: RootConfig) -> Iterator[PromptRow]:
    if root.input is not None:
        return read_prompts(Path(root.input))
    return iter([prompt_row({"prompt": root.prompt}, index=0, where="prompt")])


def _artifact(plan: StagePlan, role: str) -> Artifact | None:
    found = plan.parents.get(role)
    assert found is None or isinstance(found, Artifact)
    return found


def _tokenizer(
    root: RootConfig, policy: Artifact | None, mixture: Mixture
) -> PreTrainedTokenizerFast:
    if policy is None:
        return own_tokenizer(root.model, mixture)
    return _prepared(policy, root)


def _prepared(artifact: Artifact, root: RootConfig) -> PreTrainedTokenizerFast:
    tokenizer = load_tokenizer(artifact.path, root.model)
    prepare_tokenizer(tokenizer)
    return tokenizer


def _require_tokenizer_of(
    tokenizer: PreTrainedTokenizerFast, reward: Artifact, root: RootConfig
) -> None:
    # both as training sees them: a folder of other making may lack a pad token or a template
    if tokenizer_fingerprint(_prepared(reward, root)) != tokenizer_fingerprint(tokenizer):
        raise UserError(
            "generate.init.reward must have the tokenizer of the policy, "
            f"got {str(reward.path)!r} with another one"
        )


def _watched(rows: Iterable[Row], advance: Any) -> Iterator[Row]:
    for row in rows:
        yield row
        advance(1)


def _say_who(policy: Artifact | None, root: RootConfig) -> None:
    """Whose words these are: a command that names an experiment speaks with its model as it was before training."""
    if policy is not None:
        log.info("generate: the policy is %s", policy.path)
    elif root.model.path is not None:
        log.info(
            "generate: the policy is %s, its own weights; generate.init.policy=RUN for trained ones",
            root.model.path,
        )
    else:
        log.info("generate: the policy is of random weights")


def _say(root: RootConfig, counts: Counts) -> None:
    if counts.replies_left_out:
        log.info(
            "generate: %d conversations end with an assistant's turn; it is no part of their prompt",
            counts.replies_left_out,
        )
    if counts.too_long:
        some = ", ".join(counts.places) + (", ..." if counts.too_long > 5 else "")
        log.warning(
            "generate: %d of %d prompts are too long and have no response (%s)",
            counts.too_long,
            counts.prompts,
            some,
        )
    if root.output is not None:
        log.info("generate: %d responses, %s", counts.responses, root.output)
