"""The closed world: 24 animals, five attributes, and how one fact is said in English.

The facts are the world's own: nature is a model for them, not an authority.
"""

from typing import NamedTuple

# name: colour, food, home, legs, size
_TABLE = """
fox     red    meat    forest four small
wolf    grey   meat    forest four big
bear    brown  fish    forest four huge
deer    brown  grass   forest four big
owl     brown  insects forest two  small
mouse   grey   seeds   barn   four small
cow     black  grass   barn   four huge
hen     white  insects barn   two  small
goat    white  grass   barn   four big
duck    green  seeds   lake   two  small
swan    white  leaves  lake   two  big
frog    green  insects lake   four small
seal    grey   fish    sea    no   big
shark   grey   fish    sea    no   big
whale   black  fish    sea    no   huge
gull    white  fish    sea    two  small
crab    red    leaves  sea    six  small
camel   yellow leaves  desert four huge
snake   green  meat    desert no   small
lion    yellow meat    desert four big
ant     red    leaves  desert six  small
parrot  red    seeds   jungle two  small
ape     black  leaves  jungle two  big
bee     yellow seeds   jungle six  small
"""

ATTRIBUTES = ("colour", "food", "home", "legs", "size")
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
# what "bigger" and "more legs" compare
_ORDER = {"size": ("small", "big", "huge"), "legs": ("no", "two", "four", "six")}
COMPARABLE = tuple(_ORDER)

_SINGULAR = {
    "colour": "is {}",
    "food": "eats {}",
    "home": "lives in the {}",
    "legs": "has {} legs",
    "size": "is {}",
}
_PLURAL = {
    "colour": "are {}",
    "food": "eat {}",
    "home": "live in the {}",
    "legs": "have {} legs",
    "size": "are {}",
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
    """The predicate that compares two animals: "is bigger than" or "has more legs than"."""
    return {"size": "is bigger than", "legs": "has more legs than"}[attribute]


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
    """`(fox, owl, bat)` → "the fox, the owl and the bat"."""
    the = [f"the {name}" for name in names]
    return the[0] if len(the) == 1 else ", ".join(the[:-1]) + " and " + the[-1]
