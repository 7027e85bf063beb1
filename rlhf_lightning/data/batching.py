"""The loaders of each stage. Batch i is a function of i and the seed, so any batch can be made alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_lightning.batches import PPOBatch
from rlhf_lightning.config import PPOConfig, RewardConfig, SFTConfig
from rlhf_lightning.data import collate
from rlhf_lightning.data.cutting import cut_comparisons, cut_demonstration, cut_text
from rlhf_lightning.data.loader import BatchLoader, Counted, ResumableLoader
from rlhf_lightning.data.mixture import Mixture
from rlhf_lightning.data.prompts import Prompt, first_prompts, fitting_prompts
from rlhf_lightning.data.records import Record, keep_completions, pairs_of
from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Prompt", "comparison_batches", "first_prompts", "prompt_batches", "sft_batches"]


EncodedComparison = tuple[list[int], list[list[int]], Record]
"""Prompt ids, ids of each completion, record."""


def sft_batches(
    mixture: Mixture,
    tokenizer: PreTrainedTokenizerBase,
    *,
    kind: str,
    hp: SFTConfig,
    split: str,
    seed: int,
    prefetch: int = 0,
) -> BatchLoader:
    """Loader of `SFTBatch`, one for each optimizer step: the global batch, packed.

    The training split gives `hp.epochs` passes over `hp.examples` examples (or all of a smaller finite source) as a
    `ResumableLoader`; another split gives `hp.eval_examples` once. The last batch may be smaller. `kind` is
    demonstration or text. What is longer than `hp.max_length`, or has a last reply longer than `hp.max_reply_tokens`,
    is dropped or cut, as `mix.over_long` says; a batch may lose all. Counts: examples, too_long, cut.

    Raises: UserError if there are no such records, or all of the first batch are too long.
    """
    train = split == "train"
    examples = _at_most(hp.examples if train else hp.eval_examples, mixture.size(kind, split))
    stream = _Stream(examples, hp.epochs if train else 1, seed, hp.global_batch_size)

    def make_batch(number: int) -> Counted:
        indices = stream.batch(number)
        records = [mixture.record(kind, split, index) for index in indices]
        fitting, counts = _fitting(
            kind,
            records,
            tokenizer,
            hp.max_length,
            mixture.over_long,
            max_reply_tokens=hp.max_reply_tokens,
        )
        if number == 0 and counts["too_long"] == len(indices):
            key, got = f"{hp.stage}.max_length", f"{hp.max_length}"
            if hp.max_reply_tokens is not None:
                key, got = f"{key} and sft.max_reply_tokens", f"{got} and {hp.max_reply_tokens}"
            raise UserError(
                f"{key} must be enough for some of the {split} examples, got {got}: "
                f"all {len(indices)} of the first batch are longer"
            )
        return Counted(collate.pack(fitting, hp.max_length, _pad(tokenizer)), counts)

    return _loader(make_batch, len(stream), resumable=train, prefetch=prefetch)


def prompt_batches(
    mixture: Mixture,
    tokenizer: PreTrainedTokenizerBase,
    *,
    hp: PPOConfig,
    start: int = 0,
    prefetch: int = 0,
) -> ResumableLoader:
    """Loader of `PPOBatch`, one for each iteration: its prompts, and the text for PPO-ptx.

    Training prompts start, start + 1, ... are used (another `start` for another round). The run's prompt j is the
    first of j, j + N, j + 2N, ... (N: all prompts of the run) that has at most `hp.max_prompt_tokens` tokens. Texts are
    dealt to the iteration's minibatches and packed to the length of prompt and response together. Counts: prompts,
    prompts_too_long, prompts_cut, texts, texts_too_long, texts_cut.

    Raises: UserError if there are no prompts (or no text for PPO-ptx), or none of the first batch fits.
    """
    mixture.size("prompt", "train")
    texts = hp.texts_per_iteration
    if texts:
        mixture.size("text", "train")
    each = hp.prompts_per_iteration

    def make_batch(number: int) -> Counted:
        first = start + number * each
        prompts, passed_over = fitting_prompts(
            mixture,
            tokenizer,
            range(first, first + each),
            hp.iterations * each,
            hp.max_prompt_tokens,
        )
        ids, records = [p.ids for p in prompts], [p.record for p in prompts]
        batch = PPOBatch(collate.collate_prompts(ids, records, _pad(tokenizer)))
        counts = {"prompts": len(prompts), **passed_over}
        if texts:
            indices = range(number * texts, (number + 1) * texts)
            documents = [mixture.record("text", "train", start + index) for index in indices]
            length = hp.max_prompt_tokens + hp.max_response_tokens
            fitting, found = _fitting("text", documents, tokenizer, length, mixture.over_long)
            if number == 0 and not fitting:  # a later batch may lose all
                raise UserError(
                    "ppo.max_prompt_tokens + ppo.max_response_tokens must be enough for some of the"
                    f" pretraining text, got {length}: all {len(documents)} of the first batch are longer"
                )
            # dealt before they are packed, which sorts by length: every minibatch has some of each
            deals = [fitting[i :: hp.minibatches] for i in range(hp.minibatches)]
            batch.pretraining = [collate.pack(deal, length, _pad(tokenizer)) for deal in deals]
            counts |= {"texts": found.pop("examples")}
            counts |= {f"texts_{name}": count for name, count in found.items()}
        return Counted(batch, counts)

    return ResumableLoader(make_batch, hp.iterations, prefetch=prefetch)


def comparison_batches(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    *,
    hp: RewardConfig,
    max_length: int,
    seed: int,
    train: bool = True,
    over_long: str = "drop",
    prefetch: int = 0,
) -> BatchLoader:
    """Loader of `ComparisonBatch`, one for each optimizer step: all completions of its prompts.

    A completion that is longer than `max_length` together with its prompt is dropped with its pairs, a prompt that
    keeps no pair is dropped whole; with `over_long=cut` both are cut first. Training takes `hp.epochs`
    passes, each in another order, as a `ResumableLoader`; otherwise one pass in the given order, and prompts whose
    completions are all tied stay in.
    Counts: prompts, prompts_dropped, completions_too_long, prompts_and_completions_cut.

    Raises: UserError if there are no comparisons, or none of the first batch fits.
    """
    if not records:
        raise UserError("reward needs comparisons to learn from, got none")
    stream = _Stream(len(records), hp.epochs if train else 1, seed, hp.global_batch_size)

    def make_batch(number: int) -> Counted:
        chosen = [records[index] for index in stream.batch(number)]
        cut = 0
        if over_long == "cut":
            chosen, cut = cut_comparisons(chosen, tokenizer, max_length)
        items, too_long = fitting_comparisons(chosen, tokenizer, max_length, keep_tied=not train)
        # a later batch may lose all; one of nothing but ties is no fault either: both teach nothing
        if number == 0 and not items and too_long:
            raise UserError(
                f"{hp.context_key} must be enough for comparisons with their prompts, got {max_length}: "
                f"none of the {len(chosen)} of the first batch keeps a pair"
            )
        if train:  # micro-batches of like length have little padding; the loss does not depend on the order
            items.sort(key=lambda item: len(item[0]) + max(map(len, item[1])))
        counts = {
            "prompts": len(items),
            "prompts_dropped": len(chosen) - len(items),
            "completions_too_long": too_long,
        } | ({"prompts_and_completions_cut": cut} if cut else {})
        return Counted(collate.collate_comparisons(items, _pad(tokenizer)), counts)

    return _loader(make_batch, len(stream), resumable=train, prefetch=prefetch)


class _Stream:
    """`epochs` passes over `examples` examples, in global batches; a pass after the first is shuffled."""

    def __init__(self, examples: int, epochs: int, seed: int, batch: int) -> None:
        self._examples, self._epochs, self._seed, self._batch = examples, epochs, seed, batch
        self._order = lru_cache(maxsize=2)(self._make_order)

    def __len__(self) -> int:
        return math.ceil(self._examples * self._epochs / self._batch)

    def batch(self, number: int) -> list[int]:
        """The example indices of global batch `number`."""
        start = number * self._batch
        stop = min(start + self._batch, self._examples * self._epochs)
        return [self._index(position) for position in range(start, stop)]

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, self._examples)
        # The first pass needs no order of its own: sources are shuffled already, and it may be endlessly long.
        return place if epoch == 0 else int(self._order(epoch)[place])

    def _make_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(self._examples)


def _loader(
    make_batch: Callable[[int], Any], total: int, *, resumable: bool, prefetch: int
) -> BatchLoader:
    kind = ResumableLoader if resumable else BatchLoader
    return kind(make_batch, total, prefetch=prefetch)


def _at_most(wanted: int, size: int | None) -> int:
    return wanted if size is None else min(wanted, size)


def _pad(tokenizer: PreTrainedTokenizerBase) -> int:
    pad: Any = tokenizer.pad_token_id
    return pad


def _fitting(
    kind: str,
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    over_long: str,
    *,
    max_reply_tokens: int | None = None,
) -> tuple[list[collate.Encoded], dict[str, int]]:
    """The encoded records, without (or with a cut form of) those that are too long, and how many were."""
    text = kind == "text"  # a demonstration may have a column `text` beside its messages
    given = [record["text" if text else "messages"] for record in records]
    encode: Any = collate.encode_texts if text else collate.encode_demonstrations
    encoded = encode(tokenizer, given, max_length)
    if max_reply_tokens is not None:
        encoded = [d if d and d.reply_tokens <= max_reply_tokens else None for d in encoded]
    cut = 0
    if over_long == "cut":
        shortened = partial(cut_demonstration, max_reply_tokens=max_reply_tokens)
        shorten: Any = cut_text if text else shortened
        for place in [i for i, document in enumerate(encoded) if document is None]:
            shorter = shorten(tokenizer, given[place], max_length)
            if shorter is not None:
                encoded[place] = encode(tokenizer, [shorter], max_length)[0]
                cut += 1
    fitting = [document for document in encoded if document is not None]
    counts = {"examples": len(fitting), "too_long": len(encoded) - len(fitting)}
    counts |= {"cut": cut} if cut else {}
    not_learnt = sum(document.replies_not_learnt for document in fitting)
    counts |= {"replies_not_learnt": not_learnt} if not_learnt else {}
    return fitting, counts


def fitting_comparisons(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    keep_tied: bool,
) -> tuple[list[EncodedComparison], int]:
    """Comparisons without the completions that are too long with their prompt, and how many these were.

    One that keeps no pair is left out, unless `keep_tied` and it keeps a completion.
    """
    prompts = collate.encode_prompts(tokenizer, [record["prompt"] for record in records])
    texts = [text for record in records for text in record["completions"]]
    encoded = iter(collate.encode_completions(tokenizer, texts))
    items, too_long = [], 0
    for prompt, record in zip(prompts, records, strict=True):
        completions = [next(encoded) for _ in record["completions"]]
        kept = [i for i, ids in enumerate(completions) if len(prompt) + len(ids) <= max_length]
        too_long += len(completions) - len(kept)
        smaller = record if len(kept) == len(completions) else keep_completions(record, kept)
        if pairs_of(smaller)[0] or (keep_tied and kept):
            items.append((prompt, [completions[i] for i in kept], smaller))
    return items, too_long
