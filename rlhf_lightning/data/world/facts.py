"""The closed world: 12 animals, four attributes, and how one fact is said in English.

The facts are the world's own: nature is a model for them, not an authority.
"""

from typing import NamedTuple

# name: colour, food, home, legs; every value has at least three holders, so that three can be listed
_TABLE = """
fox     red   meat  forest four
bear    brown fish  forest four
owl     brown meat  forest two
cow     white grass barn   four
hen     red   seeds barn   two
goat    white grass barn   four
duck    green seeds lake   two
swan    white grass lake   two
frog    green meat  lake   four
seal    brown fish  sea    no
whale   green fish  sea    no
shark   red   seeds sea    no
"""

ATTRIBUTES = ("colour", "food", "home", "legs")
FACTS: dict[str, dict[str, str]] = {
    name: dict(zip(ATTRIBUTES, values, strict=True))
    for name, *values in (line.split() for line in _TABLE.strip().splitlines())
}
ANIMALS = tuple(FACTS)
VALUES: dict[str, tuple[str, ...]] = {
    attribute: tuple(dict.fromkeys(FACTS[name][attribute] for name in ANIMALS))
    for attribute in ATTRIBUTES
}
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
# what "more legs" compares
_ORDER = {"legs": ("no", "two", "four")}
COMPARABLE = tuple(_ORDER)

_SINGULAR = {
    "colour": "is {}",
    "food": "eats {}",
    "home": "lives in the {}",
    "legs": "has {} legs",
}
_PLURAL = {
    "colour": "are {}",
    "food": "eat {}",
    "home": "live in the {}",
    "legs": "have {} legs",
}


class Claim(NamedTuple):
    """One statement about the world: a fact, or that `subject` exceeds `value` in an attribute.

    `relation` is an attribute ("colour") or a comparison ("more size"), where `value` is the
    other animal.
    """

    subject: str
    relation: str
    value: str


def predicate(attribute: str, value: str, *, plural: bool = False) -> str:
    """`home, forest` → "lives in the forest", or "live in the forest" of several."""
    return (_PLURAL if plural else _SINGULAR)[attribute].format(value)


def comparative(attribute: str) -> str:
    """The predicate that compares two animals."""
    return {"legs": "has more legs than"}[attribute]


def degree(name: str, attribute: str) -> int:
    """Where an animal stands on a comparable attribute (0 = least)."""
    return _ORDER[attribute].index(FACTS[name][attribute])


def is_true(claim: Claim) -> bool:
    """Whether the world agrees."""
    if claim.relation.startswith("more "):
        attribute = claim.relation.removeprefix("more ")
        return degree(claim.subject, attribute) > degree(claim.value, attribute)
    return FACTS[claim.subject][claim.relation] == claim.value


def holders(attribute: str, value: str) -> tuple[str, ...]:
    """The animals that have this value, in the table's order."""
    return tuple(name for name in ANIMALS if FACTS[name][attribute] == value)


def enumerate_names(names: list[str] | tuple[str, ...]) -> str:
    """`(fox, owl, hen)` → "the fox, the owl and the hen"."""
    the = [f"the {name}" for name in names]
    return the[0] if len(the) == 1 else ", ".join(the[:-1]) + " and " + the[-1]
