"""Prompts that are short enough: those that are not are passed over, or cut where `mix.over_long` says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rlhf_lightning.data.cutting import cut_prompt
from rlhf_lightning.data.encode import encode_prompt, encode_prompts
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
    say: Callable[[str], None],
    start: int = 0,
) -> list[Prompt]:
    """The first `count` prompts from `start` on that fit (or are cut), each once; fewer if a finite source ends before.

    What was left out or cut on the way is said.
    Raises: UserError if there are none, or far too many in a row are too long.
    """
    size = mixture.size("prompt", split)
    stop = start + (_TRIES * count if size is None else size)
    found: list[Prompt] = []
    too_long: set[int] = set()
    while len(found) < count and start < stop:
        indices = range(start, min(start + max(count - len(found), 16), stop))
        prompts = _prompts(mixture, tokenizer, split, indices)
        too_long |= {p.index for p in prompts if len(p.ids) > max_prompt_tokens}
        prompts, _ = _cut(mixture, tokenizer, prompts, max_prompt_tokens)
        found += [p for p in prompts if len(p.ids) <= max_prompt_tokens]
        start = indices.stop
    if not found:
        raise _no_prompt_fits(max_prompt_tokens, split)
    found = found[:count]
    cut = len(too_long & {p.index for p in found})
    left_out = sum(len(found) < count or i <= found[-1].index for i in too_long) - cut
    for number, what in ((left_out, "left out"), (cut, "cut")):
        if number:
            say(f"{number} {split} prompts {what}: more than {max_prompt_tokens} tokens")
    return found


def fitting_prompts(
    mixture: Mixture,
    tokenizer: PreTrainedTokenizerBase,
    indices: Sequence[int],
    stride: int,
    max_prompt_tokens: int,
) -> tuple[list[Prompt], dict[str, int]]:
    """For each index the first prompt of index, index + stride, ... that fits or can be cut; and the counts."""
    prompts = _prompts(mixture, tokenizer, "train", indices)
    prompts, cut = _cut(mixture, tokenizer, prompts, max_prompt_tokens)
    too_long = 0
    for _ in range(_TRIES):
        places = [i for i, prompt in enumerate(prompts) if len(prompt.ids) > max_prompt_tokens]
        if not places:
            return prompts, {"prompts_too_long": too_long} | ({"prompts_cut": cut} if cut else {})
        too_long += len(places)
        others = _prompts(mixture, tokenizer, "train", [prompts[i].index + stride for i in places])
        others, more = _cut(mixture, tokenizer, others, max_prompt_tokens)
        cut += more
        for i, other in zip(places, others, strict=True):
            prompts[i] = other
    raise _no_prompt_fits(max_prompt_tokens, "train")


def _prompts(
    mixture: Mixture, tokenizer: PreTrainedTokenizerBase, split: str, indices: Sequence[int]
) -> list[Prompt]:
    records = [mixture.record("prompt", split, index) for index in indices]
    ids = encode_prompts(tokenizer, [record["prompt"] for record in records])
    return [Prompt(*item) for item in zip(indices, ids, records, strict=True)]


def _cut(
    mixture: Mixture,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_prompt_tokens: int,
) -> tuple[list[Prompt], int]:
    """The prompts, too long ones cut if the mix wants it, and how many were."""
    if mixture.over_long != "cut":
        return list(prompts), 0
    found, cut = [], 0
    for prompt in prompts:
        shorter = None
        if len(prompt.ids) > max_prompt_tokens:
            shorter = cut_prompt(tokenizer, prompt.record["prompt"], max_prompt_tokens)
        if shorter is not None:
            ids = encode_prompt(tokenizer, shorter)
            found.append(replace(prompt, ids=ids, record={**prompt.record, "prompt": shorter}))
            cut += 1
        else:
            found.append(prompt)
    return found, cut


def _no_prompt_fits(max_prompt_tokens: int, split: str) -> UserError:
    return UserError(
        f"ppo.max_prompt_tokens must be enough for the {split} prompts, got {max_prompt_tokens}: "
        "all that were looked at are longer"
    )
