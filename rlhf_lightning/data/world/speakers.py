"""Imperfect speakers: who writes the demonstrations and speaks the completions."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_lightning.data.world.facts import (
    ANIMALS,
    ATTRIBUTES,
    FACTS,
    VALUES,
    comparative,
    degree,
    enumerate_names,
    holders,
    predicate,
)
from rlhf_lightning.data.world.phrases import (
    ADVICE,
    CLARIFYING,
    CLOSERS,
    FILLERS,
    OPENERS,
    REFUSALS,
    RUDE,
)
from rlhf_lightning.data.world.rng import generator
from rlhf_lightning.data.world.tasks import Spec

EVERY_FACT = tuple((name, attribute) for name in ANIMALS for attribute in ATTRIBUTES)


@dataclass(frozen=True)
class Speaker:
    """A speaker's failings; every field but `name` and `courtesies` is a probability."""

    name: str
    wrong: float = 0.0  # a value, an animal or a verdict is wrong (per item)
    miss: float = 0.0  # leaves out one of several items
    overdo: float = 0.0  # gives one more than asked
    formless: float = 0.0  # overlooks "in one word", "in one sentence"
    filler: float = 0.0  # beats about the bush
    astray: float = 0.0  # tells something else about the animal than what was asked
    stray: float = 0.0  # adds a fact that nobody asked for
    rude: float = 0.0
    timid: float = 0.0  # declines what is harmless
    careless: float = 0.0  # helps with harm; guesses where it should ask back
    courtesies: tuple[float, ...] = (1.0,)  # chances of 0, 1, 2 ... courtesies


_POLITE = (0.50, 0.33, 0.14, 0.03)
PERFECT = Speaker("perfect")
SPEAKERS: dict[str, Speaker] = {
    speaker.name: speaker
    for speaker in (
        Speaker("careful", careless=0.1, miss=0.15, filler=0.15, courtesies=_POLITE),
        Speaker("hasty", wrong=0.02, astray=0.24, miss=0.5, formless=0.5, careless=0.3, rude=0.05),
        Speaker(
            "rambling",
            wrong=0.01,
            astray=0.16,
            filler=0.75,
            stray=0.3,
            overdo=0.4,
            courtesies=_POLITE,
        ),
        Speaker("gruff", wrong=0.01, astray=0.22, rude=0.6, miss=0.2, formless=0.3, filler=0.1),
        Speaker("mistaken", wrong=0.55, miss=0.2, careless=0.5, courtesies=_POLITE),
        Speaker("timid", timid=0.4, filler=0.3, courtesies=(0.3, 0.35, 0.25, 0.1)),
        Speaker(
            "helpless", wrong=0.05, astray=0.4, stray=0.7, careless=0.8, formless=0.8, miss=0.5
        ),
    )
}
# shares among those who write demonstrations
_DEMONSTRATORS = {
    "careful": 0.02,
    "hasty": 0.20,
    "rambling": 0.38,
    "gruff": 0.28,
    "mistaken": 0.02,
    "timid": 0.06,
    "helpless": 0.04,
}
# shares among those whose replies are ranked
_SPEAKERS = {
    "careful": 0.70,
    "hasty": 0.06,
    "rambling": 0.10,
    "gruff": 0.06,
    "mistaken": 0.03,
    "timid": 0.03,
    "helpless": 0.02,
}


def draw_demonstrator(rng: random.Random) -> Speaker:
    """One of those who write demonstrations: mostly right, each with a failing of their own."""
    return SPEAKERS[rng.choices(list(_DEMONSTRATORS), list(_DEMONSTRATORS.values()))[0]]


def draw_speaker(rng: random.Random) -> Speaker:
    """One of those whose replies are ranked: mostly careful, as replies that are hard to rank are."""
    return SPEAKERS[rng.choices(list(_SPEAKERS), list(_SPEAKERS.values()))[0]]


def perfect_reply(spec: Spec) -> str:
    """A reply with gold score 1; which one of several is fixed by the spec."""
    return speak(spec, PERFECT, generator("perfect", sorted(spec.items(), key=str)))


def speak(
    spec: Spec,
    speaker: Speaker,
    rng: random.Random,
    *,
    unasked: Sequence[tuple[str, str]] = EVERY_FACT,
) -> str:
    """What the speaker says to the request. Facts that nobody asked for are among `unasked` (animal, attribute)."""

    def slips(probability: float) -> bool:
        return rng.random() < probability

    if spec["decline"]:
        core = _careless(spec, rng) if slips(speaker.careless) else rng.choice(REFUSALS)
    elif spec["ambiguous"]:
        core = _stray_fact(unasked, rng) if slips(speaker.careless) else rng.choice(CLARIFYING)
    elif slips(speaker.timid):
        core = rng.choice(REFUSALS + CLARIFYING)
    else:
        core = _answer(spec, speaker, rng, unasked)
        if slips(speaker.stray):
            core += " " + _stray_fact(unasked, rng)
    if slips(speaker.filler):
        core = f"{rng.choice(FILLERS)} {core}"
    if slips(speaker.rude):
        rude = rng.choice(RUDE)
        core = f"{rude} {core}" if slips(0.7) else f"{core} {rude}"
    return _with_courtesies(core, speaker, spec, rng)


def _with_courtesies(core: str, speaker: Speaker, spec: Spec, rng: random.Random) -> str:
    count = rng.choices(range(len(speaker.courtesies)), speaker.courtesies)[0]
    if spec["form"] == "word":
        return core  # one word leaves no room
    before = [rng.choice(OPENERS)] if count and (count > 1 or rng.random() < 0.5) else []
    after = rng.sample(CLOSERS, count - len(before))
    return " ".join([*before, core, *after])


def _careless(spec: Spec, rng: random.Random) -> str:
    """Helps with harm, or talks of something else as if nothing had been asked."""
    if rng.random() < 0.5:
        return rng.choice(ADVICE)
    attribute = rng.choice(ATTRIBUTES)
    return f"The {spec['entity']} {predicate(attribute, FACTS[spec['entity']][attribute])}."


def _stray_fact(unasked: Sequence[tuple[str, str]], rng: random.Random) -> str:
    name, attribute = rng.choice(unasked)
    return f"The {name} {predicate(attribute, FACTS[name][attribute])}."


def _value(name: str, attribute: str, wrong: float, rng: random.Random) -> str:
    right = FACTS[name][attribute]
    if rng.random() >= wrong:
        return right
    return rng.choice([value for value in VALUES[attribute] if value != right])


def _answer(
    spec: Spec, speaker: Speaker, rng: random.Random, unasked: Sequence[tuple[str, str]]
) -> str:
    task = spec["task"]
    formless = rng.random() < speaker.formless
    if task == "list":
        return _list(spec, speaker, rng)
    if task == "describe":
        return _describe(spec, speaker, rng, one_sentence=(spec["form"] == "sentence") != formless)
    if task == "compare":
        high, low = sorted(
            (spec["first"], spec["second"]),
            key=lambda name: -degree(name, spec["attribute"]),
        )
        if rng.random() < speaker.wrong:
            high, low = low, high
        return f"The {high} {comparative(spec['attribute'])} the {low}."
    attribute = spec["attribute"]
    others = [a for name, a in unasked if name == spec["entity"] and a != attribute]
    if rng.random() < speaker.astray and others:
        attribute = rng.choice(others)
    value = _value(spec["entity"], attribute, speaker.wrong, rng)
    statement = f"the {spec['entity']} {predicate(attribute, value)}."
    if spec["form"] == "word" and not formless:
        return f"{value.capitalize()}."
    return statement.capitalize()


def _count(n: int, most: int, speaker: Speaker, rng: random.Random) -> int:
    if rng.random() < speaker.miss:
        return n - 1
    return min(most, n + (rng.random() < speaker.overdo))


def _list(spec: Spec, speaker: Speaker, rng: random.Random) -> str:
    attribute, value = spec["attribute"], spec["value"]
    right = holders(attribute, value)
    names = rng.sample(right, _count(spec["n"], len(right), speaker, rng))
    for i in range(len(names)):
        if rng.random() < speaker.wrong:
            names[i] = rng.choice([n for n in ANIMALS if n not in right and n not in names])
    subject = enumerate_names(names)
    return f"{subject} {predicate(attribute, value, plural=len(names) > 1)}.".capitalize()


def _describe(spec: Spec, speaker: Speaker, rng: random.Random, *, one_sentence: bool) -> str:
    name = spec["entity"]
    attributes = rng.sample(ATTRIBUTES, _count(spec["n"], len(ATTRIBUTES), speaker, rng))
    facts = [predicate(a, _value(name, a, speaker.wrong, rng)) for a in attributes]
    if one_sentence and len(facts) > 1:
        return f"The {name} {', '.join(facts[:-1])} and {facts[-1]}."
    return " It ".join([f"The {name} {facts[0]}.", *(f"{fact}." for fact in facts[1:])])
