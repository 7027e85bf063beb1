"""Weighted mixtures of sources, with random access to every record."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from rlhf_lightning.config import MixConfig
from rlhf_lightning.data.adapted import AdaptedSource
from rlhf_lightning.data.index import together
from rlhf_lightning.data.records import Record, validate
from rlhf_lightning.data.screen import Screen, held_out_by
from rlhf_lightning.data.source import Source, build_source, verdict
from rlhf_lightning.data.turns import Member, Turns
from rlhf_lightning.errors import UserError

__all__ = ["Mixture", "Source"]

_STRIDE = 2**32
"""Records of an endless source that belong to one seed."""

log = logging.getLogger("rlhf_lightning")


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
        self._said = False
        self._screens: dict[str, Screen] = {}
        self.sources = self._built()
        self._turns = lru_cache(maxsize=None)(self._find_turns)
        self._order = lru_cache(maxsize=16)(self._make_order)
        self._started_over = lru_cache(maxsize=None)(self._say_started_over)

    @property
    def over_long(self) -> str:
        """What becomes of records that are too long: drop or cut."""
        return self._config.over_long

    @property
    def removed(self) -> dict[str, dict[str, int]]:
        """Source → reason → records (or parts of rows) that were left out."""
        found = {name: Counter(getattr(s, "removed", {})) for name, s in self.sources.items()}
        for name, screen in self._screens.items():
            found[name] += screen.removed
        return {name: dict(sorted(counts.items())) for name, counts in found.items() if counts}

    def counts(self) -> dict[str, float]:
        """`data/<source>/<reason>` → count, for a run's metrics."""
        return {
            f"data/{name}/{reason}": float(count)
            for name, reasons in self.removed.items()
            for reason, count in reasons.items()
        }

    def say_removed(self, say: Callable[[str], None]) -> None:
        """Tell once what was left out of each source, and why."""
        if not self._said:
            for name, reasons in self.removed.items():
                say(f"left out of mix.sources.{name}: {_listed(reasons)}")
        self._said = True

    def size(self, kind: str, split: str) -> int | None:
        """Records of all sources together, times `max_repeats` where there is one; None if one of them is endless.

        Raises: UserError if there are none.
        """
        sizes = [m.size if m.cap is None else m.cap for m in self._turns(kind, split).members]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def has(self, kind: str, split: str = "train") -> bool:
        """Whether there are such records: some source of a weight above 0 has them."""
        return any(
            self._weight(name) > 0 and self.size_of(name, kind, split) != 0
            for name in self.sources
            if kind in self.kinds_of(name)
        )

    def record(self, kind: str, split: str, index: int) -> Record:
        """The mixture's record at `index` (any index: finite sources start over), with its "source".

        Raises: UserError if no source has such records, or one gives a record that breaks the rules.
        """
        turns = self._turns(kind, split)
        if split == "train" and turns.total is not None and index >= turns.total:
            self._started_over(kind, turns.total)
        member, local = turns.locate(index)
        if member.size is None:
            place = local + (self.seed * _STRIDE if split == "train" else 0)
        else:
            place = self._shuffled(kind, split, member, local)
        return {**self.record_of(member.name, kind, split, place), "source": member.name}

    def kinds_of(self, name: str) -> frozenset[str]:
        """The kinds of a source that are used."""
        return self._used(name, self.sources[name])

    def size_of(self, name: str, kind: str, split: str) -> int | None:
        """Records of one source that the mix may give; None if they are endless."""
        screen, limit = self._screens.get(name), self._config.sources[name].limit
        size = (screen or self.sources[name]).size(kind, split)
        return size if limit is None else limit if size is None else min(size, limit)

    def record_of(self, name: str, kind: str, split: str, place: int) -> Record:
        """A source's own record, without those that are held out elsewhere."""
        return (self._screens.get(name) or self.sources[name]).record(kind, split, place)

    def records(self, kind: str, split: str, count: int, *, start: int = 0) -> Iterator[Record]:
        """Records start, start + 1, ..., `count` of them."""
        return (self.record(kind, split, index) for index in range(start, start + count))

    def gold(self, record: Mapping[str, Any], response: str) -> Any:
        """The source's gold score of a response; None where it has none."""
        hook = self._hook(record, "gold")
        found = hook(record.get("meta", {}), response) if hook else None
        return None if found is None else verdict(found, f"mix.sources.{record['source']}")

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

    def should_refuse(self, record: Mapping[str, Any]) -> bool | None:
        """Whether the request should be declined; None where the source cannot tell that and a refusal."""
        hook = self._hook(record, "is_refusal") and self._hook(record, "should_refuse")
        return bool(hook(record.get("meta", {}))) if hook else None

    @property
    def knows_refusals(self) -> bool:
        """Whether some source can tell a refusal and when one is right."""
        return any(hasattr(source, "should_refuse") for source in self.sources.values())

    @property
    def ranks_prompts(self) -> bool:
        """Whether every source of prompts has labelers who rank completions."""
        having = [
            source
            for name, source in self.sources.items()
            if "prompt" in self.kinds_of(name) and self._weight(name) > 0
        ]
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

    def _built(self) -> dict[str, Source]:
        """Sources by name.

        Classes come first, then files in the order of `_TURN`. Files keep away from what those before them hold out,
        the training records of classes from what all others do.
        """
        configs = self._config.sources
        own = {
            name: build_source(name, configs[name], self._config)
            for name in sorted(configs)
            if configs[name].target is not None
        }
        reads = {name: partial(_checked, name, source) for name, source in own.items()}
        held_out = together(held_out_by(self._used(n, s), s.size, reads[n]) for n, s in own.items())
        sources = dict(own)
        for name in sorted(configs.keys() - own.keys(), key=lambda n: (_TURN[configs[n].split], n)):
            sources[name] = source = build_source(name, configs[name], self._config, held_out)
            assert isinstance(source, AdaptedSource)
            held_out = together((held_out, source.held_out(self._used(name, source))))
        for name, source in own.items():
            self._screens[name] = Screen(
                self._used(name, source),
                source.size,
                reads[name],
                banned=np.unique(np.concatenate(list(held_out.values()))),
                held_out_prompts=self._config.held_out_prompts,
                key=name,
            )
        return {name: sources[name] for name in sorted(sources)}

    def _used(self, name: str, source: Source) -> frozenset[str]:
        wanted = self._config.sources[name].kinds
        return frozenset(kind for kind in source.kinds if wanted.get(kind, True))

    def _weight(self, name: str) -> float:
        return self._config.weights.get(name, 1.0)

    def _find_turns(self, kind: str, split: str) -> Turns:
        return Turns(self._find_members(kind, split), partial(self._rng, kind, split))

    def _find_members(self, kind: str, split: str) -> list[Member]:
        having = [name for name in self.sources if kind in self.kinds_of(name)]
        if not having:
            removed = {n: f", left out: {_listed(reasons)}" for n, reasons in self.removed.items()}
            seen = "; ".join(
                f"{n} has {', '.join(sorted(self.kinds_of(n))) or 'nothing'}{removed.get(n, '')}"
                for n in self.sources
            )
            asks = any({"comparison", "prompt"} & self.kinds_of(n) for n in self.sources)
            remedy = _REMEDY.get(kind, "") if asks else ""
            raise UserError(f"mix.sources: no source has {_plural(kind)} ({seen}){remedy}")
        weights = {name: self._weight(name) for name in having}
        sizes = {name: self.size_of(name, kind, split) for name in having}
        members = [
            Member(n, sizes[n], weights[n], self._cap(n, sizes[n], split))
            for n in having
            if weights[n] > 0 and sizes[n] != 0
        ]
        if not members:
            seen = "; ".join(f"{n}: {sizes[n]} records, weight {weights[n]:g}" for n in having)
            hint = "" if split == "train" else self._hint(kind, split, having)
            raise UserError(f"mix.sources: no {_plural(kind)} in the {split} split ({seen}){hint}")
        return members

    def _hint(self, kind: str, split: str, having: list[str]) -> str:
        sources = self._config.sources
        by_hash = [n for n in having if sources[n].target is None and sources[n].split is None]
        training = sum(self.size_of(name, kind, "train") or 0 for name in by_hash)
        if not training:
            files = any(sources[name].target is None for name in having)
            return f"; for a file of them: mix.sources.NAME.split={split}" if files else ""
        key, share = f"mix.{split}_fraction", getattr(self._config, f"{split}_fraction")
        return f"; {key}={share:g} gives it none of {training} that are for training now: a larger share takes more"

    def _cap(self, name: str, size: int | None, split: str) -> int | None:
        """What is held out is asked once: a small source must not count several times."""
        repeats = self._config.sources[name].max_repeats if split == "train" else 1.0
        return None if size is None or repeats is None else max(int(size * repeats), 1)

    def _say_started_over(self, kind: str, total: int) -> None:
        log.warning(
            "mix: all %d %s for training were given, each source's max_repeats times; they start over",
            total,
            _plural(kind),
        )

    def _shuffled(self, kind: str, split: str, member: Member, local: int) -> int:
        assert member.size is not None
        epoch, place = divmod(local, member.size)
        return int(self._order(kind, split, member.name, member.size, epoch)[place])

    def _make_order(self, kind: str, split: str, name: str, size: int, epoch: int) -> np.ndarray:
        return self._rng(kind, split, name, epoch).permutation(size).astype(np.uint32)

    def _rng(self, kind: str, split: str, *address: object) -> np.random.Generator:
        seed = self.seed if split == "train" else 0
        text = repr((seed, kind, split, *address)).encode()
        return np.random.default_rng(list(text))


_TURN: dict[str | None, int] = {"test": 0, "validation": 1, None: 2, "train": 3}
"""Whose prompts stay where two sources of different splits have the same: the earlier one's. Sources that are split by
hash agree among themselves."""


def _checked(name: str, source: Source, kind: str, split: str, place: int) -> Record:
    """A record of a source that someone else wrote."""
    record = source.record(kind, split, place)
    where = f"mix.sources.{name} {split}[{place}]"
    return validate(kind, record, where=where, allow_all_tied=True)


_REMEDY = {
    "demonstration": "; without demonstrations PPO begins from model.path: reward.init.policy=none ppo.init.policy=none"
    " evaluate.models.sft=none evaluate.models.base=skip",
    "comparison": "; without comparisons a function or another reward model is the score: reward_source=function or"
    " reward_source=model",
}
"""What a command does without records of a kind."""


def _listed(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in reasons.items())


def _plural(kind: str) -> str:
    return "text" if kind == "text" else f"{kind}s"
