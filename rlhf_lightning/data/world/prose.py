"""Raw text: what a base model reads. All facts, no chat, and as untidy as text on the web is."""

import random

from rlhf_lightning.data.world.facts import (
    ANIMALS,
    ATTRIBUTES,
    COMPARABLE,
    FACTS,
    VALUES,
    comparative,
    degree,
    enumerate_names,
    holders,
    predicate,
)
from rlhf_lightning.data.world.phrases import COURTESIES, FILLERS
from rlhf_lightning.data.world.speakers import perfect_reply
from rlhf_lightning.data.world.tasks import WORDINGS, Combination, fill, partition
from rlhf_lightning.data.world.wording import question

_PEOPLE = ("Tom", "Ann", "Sam", "Mia", "Max", "Eva")
_JUNK = (
    "click here to read more",
    "page 3 of 12",
    "no comments yet",
    "share this with a friend",
    "all rights reserved",
    "log in to reply",
)


def _entry(rng: random.Random, _seed: int) -> str:
    """An encyclopaedia entry on one animal."""
    name = rng.choice(ANIMALS)
    facts = [predicate(a, FACTS[name][a]) for a in rng.sample(ATTRIBUTES, rng.randint(2, 4))]
    if rng.random() < 0.25:
        facts[:2] = [f"{facts[0]} and {facts[1]}"]
    lead = f"The {name}" if rng.random() < 0.8 else f"A {name}"
    subject = "It" if rng.random() < 0.6 else f"The {name}"
    return " ".join([f"{lead} {facts[0]}.", *(f"{subject} {fact}." for fact in facts[1:])])


def _groups(rng: random.Random, _seed: int) -> str:
    """Who shares a property."""
    sentences = []
    for _ in range(rng.randint(1, 3)):
        attribute = rng.choice(ATTRIBUTES)
        value = rng.choice(VALUES[attribute])
        having = holders(attribute, value)
        names = rng.sample(having, rng.randint(1, min(4, len(having))))
        subject = enumerate_names(names)
        sentence = f"{subject} {predicate(attribute, value, plural=len(names) > 1)}."
        sentences.append(sentence.capitalize())
    return " ".join(sentences)


def _comparisons(rng: random.Random, _seed: int) -> str:
    sentences = []
    while len(sentences) < 3:
        a, b = rng.sample(ANIMALS, 2)
        attribute = rng.choice(COMPARABLE)
        if degree(a, attribute) > degree(b, attribute):
            sentences.append(f"The {a} {comparative(attribute)} the {b}.")
    return " ".join(sentences)


def _story(rng: random.Random, _seed: int) -> str:
    who, name = rng.choice(_PEOPLE), rng.choice(ANIMALS)
    fact = FACTS[name]
    place = f"One day {who} went to the {fact['home']} and saw a {fact['colour']} {name}."
    more = rng.sample(ATTRIBUTES, 2)
    end = f'"It {predicate(more[0], fact[more[0]])}," {who} said. "And it '
    return f'{place} {end}{predicate(more[1], fact[more[1]])}."'


def _talk(rng: random.Random, seed: int) -> str:
    """Questions and answers as they stand in prose, about training combinations only."""
    lines = []
    for _ in range(rng.randint(1, 3)):
        who, other = rng.sample(_PEOPLE, 2)
        spec = fill(*_combination(rng, seed), rng) | {"wording": rng.randrange(WORDINGS)}
        asked, said = question(spec), perfect_reply(spec)
        if rng.random() < 0.7:
            lines.append(f"{who}: {asked}\n{other}: {said}")
        else:
            lines.append(f'{who} asked: "{asked}" {other} said: "{said}"')
    return "\n".join(lines)


def _dispute(rng: random.Random, _seed: int) -> str:
    """Somebody says something, right or wrong, and somebody else says which it is."""
    lines = []
    for _ in range(rng.randint(1, 3)):
        who, other = rng.sample(_PEOPLE, 2)
        attribute = rng.choice(ATTRIBUTES)
        value = rng.choice(VALUES[attribute])
        having = holders(attribute, value)
        right = rng.random() < 0.5
        names = rng.sample(having, rng.choice((1, 1, 2, 3)))
        if not right:
            lacking = [name for name in ANIMALS if name not in having]
            names[rng.randrange(len(names))] = rng.choice(lacking)
        said = f"{enumerate_names(names)} {predicate(attribute, value, plural=len(names) > 1)}."
        verdict = "That is right." if right else "That is wrong."
        lines.append(f"{who}: {said.capitalize()}\n{other}: {verdict}")
    return "\n".join(lines)


def _combination(rng: random.Random, seed: int) -> tuple[str, Combination]:
    task = rng.choice(("ask", "ask", "list", "check", "compare", "describe"))
    return task, rng.choice(partition(task, seed)["train"])


def _chatter(rng: random.Random, _seed: int) -> str:
    """Pleasantries, so that the words are known, and bits of page furniture."""
    who = rng.choice(_PEOPLE)
    return f'{who} said: "{rng.choice(COURTESIES + FILLERS)}" {rng.choice(_JUNK)}'


def _quiz(rng: random.Random, seed: int) -> str:
    """A list of questions without answers: what a base model takes a request for."""
    lines = []
    for number in range(1, rng.randint(2, 3) + 1):
        spec = fill(*_combination(rng, seed), rng) | {"wording": rng.randrange(WORDINGS)}
        lines.append(f"{number}. {question(spec)}")
    return "\n".join(lines)


_KINDS = {
    _entry: 0.27,
    _groups: 0.14,
    _comparisons: 0.03,
    _story: 0.04,
    _talk: 0.40,
    _dispute: 0.05,
    _chatter: 0.04,
    _quiz: 0.03,
}


def write(rng: random.Random, seed: int) -> str:
    """One document: one to three passages, sometimes untidy."""
    makers = rng.choices(list(_KINDS), list(_KINDS.values()), k=rng.randint(1, 3))
    text = "\n".join(make(rng, seed) for make in makers)
    if rng.random() < 0.08:
        text = _untidy(text, rng)
    return text


def _untidy(text: str, rng: random.Random) -> str:
    how = rng.randrange(4)
    if how == 0:
        return text.lower()
    if how == 1:
        return f"{rng.choice(_JUNK)} | {text} | {rng.choice(_JUNK)}"
    if how == 2:  # a letter is lost here and there
        return "".join(c for c in text if rng.random() > 0.03)
    return text[: rng.randint(len(text) // 3, len(text))]  # cut off
