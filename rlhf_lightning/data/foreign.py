"""Comparisons with answers to other prompts, which lose: without them a reward model of few comparisons need not read
the prompt, and PPO finds the one reply that pleases it everywhere.

Source: the non-contextual pairs of Liu et al. 2024, arXiv:2409.13156.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from rlhf_lightning.data.records import Record, prompt_key
from rlhf_lightning.data.stored import LazyRecords


class WithForeign(LazyRecords):
    """Each comparison with `foreign` more completions, below all of its own: the best ones of other comparisons.

    Which ones follows from the seed and the place alone; nothing is read before it is asked for. A record keeps fewer
    where a draw finds its own prompt again, or a completion that it has already.
    """

    def __init__(self, records: Sequence[Record], foreign: int, *, seed: int) -> None:
        self.records, self.foreign, self.seed = records, foreign, seed

    def __len__(self) -> int:
        return len(self.records)

    def _record(self, index: int) -> Record:
        record, others = self.records[index], len(self.records) - 1
        rng = random.Random(f"{self.seed}/{index}")
        drawn = rng.sample(range(others), min(self.foreign, others))
        found = [self.records[i + (i >= index)] for i in drawn]
        own = prompt_key(record["prompt"])
        texts = [best_completion(other) for other in found if prompt_key(other["prompt"]) != own]
        new = [text for text in dict.fromkeys(texts) if text not in record["completions"]]
        return with_losers(record, new)


def best_completion(record: Record) -> str:
    """The first of those that nothing beats."""
    if "ranks" in record:
        ranks: list[int] = record["ranks"]
        return record["completions"][ranks.index(min(ranks))]
    losers = {loser for _, loser in record["pairs"]}
    winners = [i for i in range(len(record["completions"])) if i not in losers]
    return record["completions"][winners[0] if winners else record["pairs"][0][0]]


def with_losers(record: Record, texts: Sequence[str]) -> Record:
    """The record with completions that lose against each of its own; among themselves they are not compared."""
    own = record["completions"]
    changed = record | {"completions": [*own, *texts]}
    if "ranks" in record:
        worst = max(record["ranks"]) + 1
        return changed | {"ranks": [*record["ranks"], *([worst] * len(texts))]}
    new = [[i, len(own) + n] for i in range(len(own)) for n in range(len(texts))]
    return changed | {"pairs": [*record["pairs"], *new]}
