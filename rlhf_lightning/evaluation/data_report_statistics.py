"""What can be counted about records: lengths, ties, length bias, agreement. Numbers in, numbers out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Lengths:
    """Lengths in tokens, all of them, in the memory of the different ones."""

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: Counter[int] = Counter(counts or {})

    def add(self, lengths: Iterable[int]) -> None:
        self.counts.update(lengths)

    def __add__(self, other: Lengths) -> Lengths:
        return Lengths(self.counts + other.counts)

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    @property
    def mean(self) -> float:
        """NaN for none."""
        total = sum(length * n for length, n in self.counts.items())
        return total / self.count if self.count else math.nan

    def quantile(self, q: float) -> int:
        """The smallest length that at least a share `q` of all do not exceed (nearest rank); exact.

        Raises: ValueError if there are no lengths.
        """
        rank, seen = max(math.ceil(q * self.count - 1e-9), 1), 0
        for length in sorted(self.counts):
            seen += self.counts[length]
            if seen >= rank:
                return length
        raise ValueError("no lengths, so no quantile")

    def over(self, limit: int) -> int:
        """How many are longer."""
        return sum(n for length, n in self.counts.items() if length > limit)

    def summary(self) -> dict[str, float]:
        """count, mean, min, p5 .. p95, max; only the count for none."""
        if not self.counts:
            return {"count": 0}
        quantiles = {f"p{round(100 * q)}": self.quantile(q) for q in QUANTILES}
        ends = {"min": min(self.counts), **quantiles, "max": max(self.counts)}
        return {"count": self.count, "mean": self.mean, **ends}

    def histogram(self, edges: Sequence[int]) -> list[int]:
        """How many lie in [edges[i], edges[i+1]), for each i."""
        bins = [0] * (len(edges) - 1)
        for length, n in self.counts.items():
            for i in range(len(bins)):
                if edges[i] <= length < edges[i + 1]:
                    bins[i] += n
        return bins


def edges_for(longest: int, bins: int = 30) -> list[int]:
    """Bin edges from 0 to beyond `longest`, of one whole width, at most `bins` bins."""
    width = max(1, math.ceil((longest + 1) / bins))
    return list(range(0, longest + width + 1, width))


def tied_pairs(ranks: Sequence[int]) -> tuple[int, int]:
    """Pairs of completions with one rank, and all pairs: K (K − 1) / 2."""
    tied = sum(n * (n - 1) // 2 for n in Counter(ranks).values())
    return tied, len(ranks) * (len(ranks) - 1) // 2


def length_bias(pairs: Iterable[tuple[int, int]], lengths: Sequence[int]) -> tuple[int, int, int]:
    """Of (winner, loser) pairs: how often the winner is the longer one, the shorter one, of equal length."""
    longer = shorter = equal = 0
    for winner, loser in pairs:
        difference = lengths[winner] - lengths[loser]
        longer, shorter, equal = (
            longer + (difference > 0),
            shorter + (difference < 0),
            equal + (difference == 0),
        )
    return longer, shorter, equal


def agreement(votes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Pairs of labels of the same two completions that agree, and all such pairs.

    `votes` holds, for two completions each, how many labels prefer the one and how many the other:
    n (n − 1) / 2 pairs of labels are alike within each camp; ties vote for nobody.
    """
    alike = total = 0
    for first, second in votes:
        alike += (first * (first - 1) + second * (second - 1)) // 2
        total += (first + second) * (first + second - 1) // 2
    return alike, total


def share(part: float, whole: float) -> float | None:
    """part / whole; None where there is nothing to divide."""
    return part / whole if whole else None


@dataclass
class ComparisonCounts:
    """What the comparisons of one source and split hold."""

    completions: Counter[int] = field(default_factory=Counter)
    """K → prompts with K completions."""
    tied: int = 0
    """Pairs of completions that were given one rank."""
    ranked_pairs: int = 0
    """All pairs of completions that were ranked; records given as `pairs` say nothing of the others."""
    all_tied: int = 0
    """Prompts whose completions all have one rank: they teach nothing."""
    decided: int = 0
    """Pairs with a winner."""
    longer: int = 0
    shorter: int = 0
    equal: int = 0
    """Decided pairs whose winner is longer, shorter, of equal length (tokens)."""
    alike: int = 0
    labels: int = 0
    """Pairs of labels of the same two completions: those that agree, and all."""

    def summary(self) -> dict[str, object]:
        """The counts, and the shares that they make."""
        return {
            "completions": {str(k): n for k, n in sorted(self.completions.items())},
            "tied_pairs": self.tied,
            "ranked_pairs": self.ranked_pairs,
            "tie_share": share(self.tied, self.ranked_pairs),
            "all_tied_prompts": self.all_tied,
            "decided_pairs": self.decided,
            "longer_wins": self.longer,
            "shorter_wins": self.shorter,
            "equal_length": self.equal,
            "longer_wins_share": share(self.longer, self.longer + self.shorter),
            "label_pairs": self.labels,
            "label_agreement": share(self.alike, self.labels),
        }
