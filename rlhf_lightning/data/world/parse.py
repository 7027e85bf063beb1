"""Read a reply sentence by sentence: what each sentence does, and what it claims."""

import re
from dataclasses import dataclass

from rlhf_lightning.data.world.facts import (
    ANIMALS,
    ATTRIBUTES,
    COMPARABLE,
    VALUES,
    Claim,
    comparative,
    predicate,
)
from rlhf_lightning.data.world.phrases import COURTESIES, FILLERS, RUDE
from rlhf_lightning.data.world.tasks import Spec


@dataclass(frozen=True)
class Sentence:
    """One sentence of a reply.

    `role`: claim | verdict | courtesy | filler | rude | refusal | clarifying | advice | unfounded.
    A claim may come with a verdict ("Yes, the fox is red.").
    """

    role: str
    claims: tuple[Claim, ...] = ()
    verdict: bool | None = None


def _normal(text: str) -> str:
    return " ".join(re.sub(r"[^a-z0-9' ]", " ", text.lower()).split())


_FIXED = {
    _normal(phrase): role
    for role, phrases in (("courtesy", COURTESIES), ("filler", FILLERS), ("rude", RUDE))
    for phrase in phrases
}
_PREDICATES = {
    predicate(attribute, value, plural=plural): (attribute, value)
    for attribute in ATTRIBUTES
    for value in VALUES[attribute]
    for plural in (False, True)
}
_PLURAL_VERBS = ("are ", "eat ", "live ", "have ")
_NAME = "(?:" + "|".join(ANIMALS) + ")"
_SUBJECTS = re.compile(
    rf"(it|(?:the |a |an )?{_NAME}(?:(?:, | and )(?:the |a |an )?{_NAME})*)\b *(.*)"
)
_VERDICT = re.compile(r"(yes|no)(?:, *| +|$)(.*)")
_REFUSAL = re.compile(r"\bi (?:will not|can not|cannot|won't|can't) help\b")
_CLARIFYING = re.compile(r"\b(?:which|what) animal do you mean\b")
_ADVICE = re.compile(r"^you can (?:use|put|hit|kill|hurt|poison|trap|kick)\b")
_COMPARISON = {f"{comparative(attribute)} the": f"more {attribute}" for attribute in COMPARABLE}


def split_sentences(reply: str) -> list[str]:
    """Sentences with their end marks; what has no end mark is a sentence too."""
    return [part.strip() for part in re.findall(r"[^.!?\n]+[.!?]*", reply) if part.strip()]


def is_refusal(response: str) -> bool:
    """Whether any sentence declines to help."""
    return _REFUSAL.search(_normal(response)) is not None


def _statement(body: str, spec: Spec, topic: str | None) -> tuple[tuple[Claim, ...], str | None]:
    """The claims of a lower-case sentence without its end mark, and whom "it" means after it."""
    match = _SUBJECTS.fullmatch(body)
    if not match:
        return (), topic
    it: list[str] = [topic] if topic else []
    names: list[str] = it if match[1] == "it" else re.findall(_NAME, match[1])
    if not names or len(set(names)) < len(names):
        return (), topic
    rest = match[2]
    if not rest:
        return _bare_names(names, spec), names[0]
    for words, relation in _COMPARISON.items():
        other = rest.removeprefix(words).strip()
        if rest.startswith(words) and other in ANIMALS and len(names) == 1:
            return (Claim(names[0], relation, other),), names[0]
    pairs = [_PREDICATES.get(part) for part in re.split(r", (?:and )?| and ", rest)]
    if None in pairs or rest.startswith(_PLURAL_VERBS) != (len(names) > 1):
        return (), topic
    return tuple(Claim(name, *pair) for name in names for pair in pairs if pair), names[0]


def _bare_names(names: list[str], spec: Spec) -> tuple[Claim, ...]:
    """ "The fox and the owl." answers who has a property, and who is bigger."""
    if spec["task"] == "list":
        return tuple(Claim(name, spec["attribute"], spec["value"]) for name in names)
    if spec["task"] == "compare" and len(names) == 1:
        pair = (spec["first"], spec["second"])
        if names[0] in pair:
            other = pair[1 - pair.index(names[0])]
            return (Claim(names[0], f"more {spec['attribute']}", other),)
    return ()


def _bare_value(body: str, spec: Spec) -> tuple[Claim, ...]:
    """ "Red." answers what colour the animal is."""
    if spec["task"] == "ask" and body in VALUES[spec["attribute"]]:
        return (Claim(spec["entity"], spec["attribute"], body),)
    return ()


def parse(spec: Spec, reply: str) -> list[Sentence]:
    """The sentences of a reply to the request `spec`; "it" starts as the request's animal."""
    topic, sentences = spec.get("entity"), []
    for text in split_sentences(reply):
        normal = _normal(text)
        if not normal:
            sentences.append(Sentence("unfounded"))
            continue
        role = _FIXED.get(normal)
        if role is None and _REFUSAL.search(normal):
            role = "refusal"
        if role is None and _CLARIFYING.search(normal):
            role = "clarifying"
        if role is None and _ADVICE.search(normal):
            role = "advice"
        if role is not None:
            sentences.append(Sentence(role))
            continue
        body = " ".join(text.lower().rstrip(".!?").split())
        value = _bare_value(body, spec)
        if value:  # before verdicts: "No." may say how many legs
            sentences.append(Sentence("claim", value))
            continue
        said = _VERDICT.fullmatch(body)
        verdict = (said[1] == "yes") if said else None
        rest = said[2] if said else body
        claims, topic = _statement(rest, spec, topic)
        if claims or (said and not rest):
            sentences.append(Sentence("claim" if claims else "verdict", claims, verdict))
        else:
            sentences.append(Sentence("unfounded"))
    return sentences
