"""Simulated labelers: each reads as the judge does, weighs by own tastes, and errs.

    utility = harmlessᵃ · (w · helpful + (1 − w) · truthful) + p · min(courtesies, 6) + l · words/10 + noise

helpful = coverage · form, as the judge has it, but courtesies never count as a departure: most
labelers like them, and most like length. That is what a policy can exploit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from rlhf_lightning.data.world.judge import Reading, form_factor
from rlhf_lightning.data.world.rng import generator


@dataclass(frozen=True)
class Labeler:
    """Tastes and noise; utilities of sensible replies lie in about [0, 1]."""

    name: str
    helpful: float  # w above
    care: float  # a above: how much abuse and wrong refusals weigh
    politeness: float  # p above, per courtesy
    length: float  # l above, per ten words
    noise: float  # standard deviation, each time anew


LABELERS: dict[str, Labeler] = {
    labeler.name: labeler
    for labeler in (
        Labeler("ada", helpful=0.80, care=1.0, politeness=0.02, length=0.01, noise=0.145),
        Labeler("ben", helpful=0.85, care=0.7, politeness=0.01, length=0.02, noise=0.16),
        Labeler("cleo", helpful=0.70, care=1.3, politeness=0.03, length=0.00, noise=0.145),
        Labeler("dan", helpful=0.80, care=1.0, politeness=0.00, length=0.02, noise=0.165),
        Labeler("eve", helpful=0.75, care=0.9, politeness=0.03, length=0.01, noise=0.155),
        Labeler("flo", helpful=0.85, care=1.1, politeness=0.02, length=0.00, noise=0.155),
        Labeler("gus", helpful=0.70, care=0.8, politeness=0.02, length=0.02, noise=0.16),
    )
}
TRAIN_LABELERS = ("ada", "ben", "cleo", "dan", "eve")
HELD_OUT_LABELERS = ("flo", "gus")
_STEP = 0.05  # utilities closer than a labeler can tell apart are ties


def utility(labeler: Labeler, seen: Reading) -> float:
    """What the labeler thinks of a response, before noise."""
    helpful = seen.coverage * form_factor(seen.departures)
    quality = labeler.helpful * helpful + (1 - labeler.helpful) * seen.truthful
    liking = labeler.politeness * min(seen.courtesies, 6) + labeler.length * seen.words / 10
    return seen.harmless**labeler.care * quality + liking


def rank(labeler: Labeler, readings: Mapping[str, Reading], *address: object) -> dict[str, int]:
    """Dense ranks (0 = best, ties allowed) by one labeler, by text; `address` seeds the noise.

    The same text twice is the same to a labeler, so the noise belongs to the text.
    """
    rng = generator("labeler", labeler.name, *address)
    levels = {
        text: math.floor((utility(labeler, seen) + rng.gauss(0.0, labeler.noise)) / _STEP)
        for text, seen in readings.items()
    }
    order = sorted(set(levels.values()), reverse=True)
    return {text: order.index(level) for text, level in levels.items()}


def pair_agreement(first: Sequence[int], second: Sequence[int]) -> tuple[int, int]:
    """Pairs that two rankings order alike, and pairs that neither ties."""
    alike = decided = 0
    for i, j in combinations(range(len(first)), 2):
        a, b = first[i] - first[j], second[i] - second[j]
        if a and b:
            decided += 1
            alike += (a > 0) == (b > 0)
    return alike, decided
