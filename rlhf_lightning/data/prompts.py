"""Prompts that are short enough: those that are not are passed over, never cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_lightning.data.encode import encode_prompts
from rlhf_lightning.data.mixture import Mixture
from rlhf_lightning.data.records import Record
from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TRIES = 50
"""Prompts in a row that may be too long before the setting is at fault."""


@dataclass(frozen=True)
class Prompt:
    """A prompt that fits."""

    index: int
    """Its place in the mixture's split."""
    ids: list[int]
    record: Record


def first_prompts(
    mixture: Mixture,
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: str,
    count: int,
    max_prompt_tokens: int,
    start: int = 0,
) -> list[Prompt]:
    """The first `count` prompts from `start` on that fit, each once; fewer if a finite source ends before.

    Raises: UserError if there are none, or far too many in a row are too long.
    """
    size = mixture.size("prompt", split)
    stop = start + (_TRIES * count if size is None else size)
    found: list[Prompt] = []
    while len(found) < count and start < stop:
        indices = range(start, min(start + max(count - len(found), 16), stop))
        found += [
            p
            for p in _prompts(mixture, tokenizer, split, indices)
            if len(p.ids) <= max_prompt_tokens
        ]
        start = indices.stop
    if not found:
        raise _no_prompt_fits(max_prompt_tokens, split)
    return found[:count]


def fitting_prompts(
    mixture: Mixture,
    tokenizer: PreTrainedTokenizerBase,
    indices: Sequence[int],
    stride: int,
    max_prompt_tokens: int,
) -> tuple[list[Prompt], int]:
    """For each index the first prompt of index, index + stride, ... that fits, and how many did not."""
    prompts = _prompts(mixture, tokenizer, "train", indices)
    too_long = 0
    for _ in range(_TRIES):
        places = [i for i, prompt in enumerate(prompts) if len(prompt.ids) > max_prompt_tokens]
        if not places:
            return prompts, too_long
        too_long += len(places)
        others = _prompts(mixture, tokenizer, "train", [prompts[i].index + stride for i in places])
        for i, other in zip(places, others, strict=True):
            prompts[i] = other
    raise _no_prompt_fits(max_prompt_tokens, "train")


def _prompts(
    mixture: Mixture, tokenizer: PreTrainedTokenizerBase, split: str, indices: Sequence[int]
) -> list[Prompt]:
    records = [mixture.record("prompt", split, index) for index in indices]
    ids = encode_prompts(tokenizer, [record["prompt"] for record in records])
    return [Prompt(*item) for item in zip(indices, ids, records, strict=True)]


def _no_prompt_fits(max_prompt_tokens: int, split: str) -> UserError:
    return UserError(
        f"ppo.max_prompt_tokens must be enough for the {split} prompts, got {max_prompt_tokens}: "
        f"{_TRIES} or more in a row are longer"
    )
