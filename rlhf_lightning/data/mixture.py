"""Weighted mixtures of sources, with random access to every record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from rlhf_lightning.config import MixConfig
from rlhf_lightning.data.files import FileSource
from rlhf_lightning.data.records import Record, validate
from rlhf_lightning.data.source import Source, build_source
from rlhf_lightning.errors import UserError

__all__ = ["Mixture", "Source"]

_BLOCK = 1000
"""Records in which the weights are kept exactly (to 1/1000); every prefix keeps them to a record or two."""
_STRIDE = 2**32
"""Records of an endless source that belong to one seed."""


@dataclass(frozen=True)
class _Member:
    """One source's part in a kind and split."""

    name: str
    size: int | None
    weight: float


class Mixture:
    """Several sources as one.

    `record(kind, split, index)` depends on (seed, kind, split, index) alone. Sources take turns as their weights
    say; a finite source is shuffled anew for each of its epochs, an endless one begins at a place of its own for
    each seed. Only the training split follows the seed: validation and test records are the same in every run.

    Raises: UserError for a source that cannot be built.
    """

    def __init__(self, config: MixConfig, seed: int) -> None:
        if not config.sources:
            raise UserError("mix.sources must name at least one source, got none")
        self.seed = seed
        self._config = config
        self.sources: dict[str, Source] = {
            name: build_source(name, source, config)
            for name, source in sorted(config.sources.items())
        }
        self._members = lru_cache(maxsize=None)(self._find_members)
        self._block = lru_cache(maxsize=32)(self._make_block)
        self._order = lru_cache(maxsize=16)(self._make_order)

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset(kind for source in self.sources.values() for kind in source.kinds)

    def size(self, kind: str, split: str) -> int | None:
        """Records of all sources together; None if one of them is endless.

        Raises: UserError if there are none.
        """
        sizes = [member.size for member in self._members(kind, split)]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def record(self, kind: str, split: str, index: int) -> Record:
        """The mixture's record at `index` (any index: finite sources start over), with its "source".

        Raises: UserError if no source has such records, or one gives a record that breaks the rules.
        """
        member, local = self._locate(kind, split, index)
        source = self.sources[member.name]
        if member.size is None:
            place = local + (self.seed * _STRIDE if split == "train" else 0)
        else:
            place = self._shuffled(kind, split, member, local)
        record = source.record(kind, split, place)
        if not isinstance(source, FileSource):  # checked when the file was read
            where = f"mix.sources.{member.name} {split}[{place}]"
            record = validate(kind, record, where=where, allow_all_tied=True)
        return {**record, "source": member.name}

    def records(self, kind: str, split: str, count: int, *, start: int = 0) -> Iterator[Record]:
        """Records start, start + 1, ..., `count` of them."""
        return (self.record(kind, split, index) for index in range(start, start + count))

    def gold(self, record: Mapping[str, Any], response: str) -> Any:
        """The source's gold score of a response; None where it has none."""
        hook = self._hook(record, "gold")
        return hook(record.get("meta", {}), response) if hook else None

    def rank(
        self, record: Mapping[str, Any], completions: Sequence[str], *, split: str, index: int
    ) -> list[int] | None:
        """Ranks by the source's labelers of that split; None where it has none."""
        hook = self._hook(record, "rank")
        return hook(record, completions, split=split, index=index) if hook else None

    def reworded(self, record: Mapping[str, Any]) -> Record | None:
        """The same request in other words; None where the source cannot say it so."""
        hook = self._hook(record, "reworded")
        other = hook(record) if hook else None
        return None if other is None else {**other, "source": record["source"]}

    def answer_items(self, record: Mapping[str, Any], response: str) -> Any | None:
        """What a response asserts, comparable with ==; None where the source cannot read it."""
        hook = self._hook(record, "answer_items")
        return hook(record.get("meta", {}), response) if hook else None

    def is_refusal(self, record: Mapping[str, Any], response: str) -> bool:
        """Whether a response declines; never where the source cannot tell."""
        hook = self._hook(record, "is_refusal")
        return bool(hook and hook(record.get("meta", {}), response))

    def should_refuse(self, record: Mapping[str, Any]) -> bool:
        """Whether the request should be declined; never where the source does not know."""
        hook = self._hook(record, "should_refuse")
        return bool(hook and hook(record.get("meta", {})))

    @property
    def knows_refusals(self) -> bool:
        """Whether some source can tell a refusal and when one is right."""
        return any(hasattr(source, "should_refuse") for source in self.sources.values())

    @property
    def ranks_prompts(self) -> bool:
        """Whether every source of prompts has labelers who rank completions."""
        having = [source for source in self.sources.values() if "prompt" in source.kinds]
        return all(hasattr(source, "rank") for source in having)

    def labeler_agreement(self) -> float | None:
        """Mean over the sources that have simulated labelers; None where none has."""
        hooks = [getattr(source, "labeler_agreement", None) for source in self.sources.values()]
        found = [hook() for hook in hooks if hook]
        return sum(found) / len(found) if found else None

    def identity(self) -> dict[str, dict[str, Any]]:
        """Source name → what its data are beside its settings (sha256 of files)."""
        hooks = {name: getattr(source, "identity", None) for name, source in self.sources.items()}
        return {name: hook() for name, hook in hooks.items() if hook}

    def _hook(self, record: Mapping[str, Any], name: str) -> Any:
        return getattr(self.sources.get(record.get("source", "")), name, None)

    def _find_members(self, kind: str, split: str) -> list[_Member]:
        having = {name: s for name, s in self.sources.items() if kind in s.kinds}
        if not having:
            seen = "; ".join(
                f"{n} has {', '.join(sorted(s.kinds))}" for n, s in self.sources.items()
            )
            raise UserError(f"mix.sources: no source has {_plural(kind)} ({seen})")
        weights = {name: self._config.weights.get(name, 1.0) for name in having}
        sizes = {name: self._limited(name, s.size(kind, split)) for name, s in having.items()}
        members = [
            _Member(n, sizes[n], weights[n]) for n in having if weights[n] > 0 and sizes[n] != 0
        ]
        if not members:
            seen = "; ".join(f"{n}: {sizes[n]} records, weight {weights[n]:g}" for n in having)
            raise UserError(f"mix.sources: no {_plural(kind)} in the {split} split ({seen})")
        return members

    def _limited(self, name: str, size: int | None) -> int | None:
        limit = self._config.sources[name].limit
        return size if limit is None else limit if size is None else min(size, limit)

    def _locate(self, kind: str, split: str, index: int) -> tuple[_Member, int]:
        """The source of the record at `index`, and how many records it gave before."""
        members = self._members(kind, split)
        if len(members) == 1:
            return members[0], index
        block, place = divmod(index, _BLOCK)
        who, given, quotas = self._block(kind, split, block)
        member = int(who[place])
        return members[member], block * int(quotas[member]) + int(given[place])

    def _make_block(self, kind: str, split: str, block: int) -> tuple[np.ndarray, ...]:
        """Who gives each record of a block, how many it gave in the block before, and its quota.

        A source's n turns fall one into each n-th of the block, at random: (i + u)/n, u uniform, sorted.
        """
        quotas = _quotas([member.weight for member in self._members(kind, split)])
        rng = self._rng(kind, split, "block", block)
        who = np.repeat(np.arange(len(quotas)), quotas)
        given = np.concatenate([np.arange(n) for n in quotas])
        order = np.argsort((given + rng.random(len(who))) / quotas[who], kind="stable")
        return who[order], given[order], quotas

    def _shuffled(self, kind: str, split: str, member: _Member, local: int) -> int:
        assert member.size is not None
        epoch, place = divmod(local, member.size)
        return int(self._order(kind, split, member.name, member.size, epoch)[place])

    def _make_order(self, kind: str, split: str, name: str, size: int, epoch: int) -> np.ndarray:
        return self._rng(kind, split, name, epoch).permutation(size).astype(np.uint32)

    def _rng(self, kind: str, split: str, *address: object) -> np.random.Generator:
        seed = self.seed if split == "train" else 0
        text = repr((seed, kind, split, *address)).encode()
        return np.random.default_rng(list(text))


def _quotas(weights: Sequence[float]) -> np.ndarray:
    """Whole numbers in proportion to weights, at least 1 each, that add up to a block (largest remainders)."""
    share = np.asarray(weights) / sum(weights) * _BLOCK
    quotas = np.maximum(np.floor(share).astype(int), 1)
    for i in np.argsort(quotas - share, kind="stable"):
        if quotas.sum() < _BLOCK:
            quotas[i] += 1
    while quotas.sum() > _BLOCK:  # many tiny weights were lifted to 1
        quotas[np.argmax(quotas)] -= 1
    return quotas


def _plural(kind: str) -> str:
    return "text" if kind == "text" else f"{kind}s"
