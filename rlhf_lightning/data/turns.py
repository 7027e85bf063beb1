"""Whose turn it is: sources give records as their weights say, some of them not for ever."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

BLOCK = 1000
"""Records in which the weights are kept exactly (to 1/1000); every prefix keeps them to a record or two."""


@dataclass(frozen=True)
class Member:
    """One source's part in a kind and split."""

    name: str
    size: int | None
    """Records it has; None: endless."""
    weight: float
    cap: int | None
    """Records it gives before it is left out; None: it begins anew for ever."""


@dataclass(frozen=True)
class _Phase:
    """A stretch in which the same members take turns."""

    start: int
    members: tuple[int, ...]
    given: tuple[int, ...]
    """What each of all members gave before."""


class Turns:
    """Index in the stream → member and how many records it gave before.

    A member that has given its cap leaves its share to the others. If all have caps, the stream has an end (`total`),
    and what lies beyond is the same stream once more, with each member's counting going on.
    """

    def __init__(self, members: Sequence[Member], rng: Callable[..., np.random.Generator]) -> None:
        self.members, self._rng = members, rng
        caps = [member.cap for member in members]
        self.total = None if None in caps else sum(cap for cap in caps if cap is not None)
        self._block = lru_cache(maxsize=32)(self._make_block)
        self._phases = self._find_phases()
        self._starts = [phase.start for phase in self._phases]

    def locate(self, index: int) -> tuple[Member, int]:
        """The member that gives record `index`, and how many it gave before."""
        again, place = divmod(index, self.total) if self.total else (0, index)
        number = bisect_right(self._starts, place) - 1
        phase = self._phases[number]
        who, local = self._within(number, place - phase.start)
        member = self.members[who]
        return member, phase.given[who] + local + again * (member.cap or 0)

    def _within(self, number: int, place: int) -> tuple[int, int]:
        members = self._phases[number].members
        if len(members) == 1:
            return members[0], place
        block, place = divmod(place, BLOCK)
        who, given, quotas = self._block(number, members, block)
        turn = int(who[place])
        return members[turn], block * int(quotas[turn]) + int(given[place])

    def _find_phases(self) -> list[_Phase]:
        given, start = [0] * len(self.members), 0
        phases: list[_Phase] = []
        while True:
            left = [
                None if m.cap is None else m.cap - n
                for m, n in zip(self.members, given, strict=True)
            ]
            active = tuple(i for i, rest in enumerate(left) if rest != 0)
            if not active:
                return phases
            phases.append(_Phase(start, active, tuple(given)))
            ends = [self._end(len(phases) - 1, active, i, left[i]) for i in active]
            known = [end for end in ends if end is not None]
            if not known:
                return phases
            length = min(known)
            for turn, count in enumerate(self._counts(len(phases) - 1, active, length)):
                given[active[turn]] += count
            start += length

    def _end(self, number: int, members: tuple[int, ...], who: int, left: int | None) -> int | None:
        """Where in a phase a member would give one record more than it has left."""
        if left is None or len(members) == 1:
            return left
        turn = members.index(who)
        quota = int(self._block(number, members, 0)[2][turn])
        block, place = divmod(left, quota)
        order, given, _ = self._block(number, members, block)
        return block * BLOCK + int(np.flatnonzero((order == turn) & (given == place))[0])

    def _counts(self, number: int, members: tuple[int, ...], length: int) -> list[int]:
        """Records that each member gives in the first `length` of a phase."""
        if len(members) == 1:
            return [length]
        blocks, rest = divmod(length, BLOCK)
        order, _, quotas = self._block(number, members, blocks)
        inside = np.bincount(order[:rest], minlength=len(members))
        return [int(n) for n in blocks * quotas + inside]

    def _make_block(
        self, number: int, members: tuple[int, ...], block: int
    ) -> tuple[np.ndarray, ...]:
        """Who gives each record of a block, how many it gave in the block before, and its quota.

        A source's n turns fall one into each n-th of the block, at random: (i + u)/n, u uniform, sorted.
        """
        quotas = _quotas([self.members[i].weight for i in members])
        rng = self._rng("block", block) if number == 0 else self._rng("phase", number, block)
        who = np.repeat(np.arange(len(quotas)), quotas)
        given = np.concatenate([np.arange(n) for n in quotas])
        order = np.argsort((given + rng.random(len(who))) / quotas[who], kind="stable")
        return who[order], given[order], quotas


def _quotas(weights: Sequence[float]) -> np.ndarray:
    """Whole numbers in proportion to weights, at least 1 each, that add up to a block (largest remainders)."""
    share = np.asarray(weights) / sum(weights) * BLOCK
    quotas = np.maximum(np.floor(share).astype(int), 1)
    for i in np.argsort(quotas - share, kind="stable"):
        if quotas.sum() < BLOCK:
            quotas[i] += 1
    while quotas.sum() > BLOCK:  # many tiny weights were lifted to 1
        quotas[np.argmax(quotas)] -= 1
    return quotas
