"""What can be asked: task specs, and which combinations belong to which split.

A spec is a JSON-able dict from which the prompt is rendered (`wording.py`) and judged (`judge.py`):

    task       ask | list | check | compare | describe | unclear | harm
    entity     the animal it is about (ask, check, describe, harm)
    attribute, value, first, second, n, way, about       as the task needs them
    form       sentence | word | facts
    kind       plain | few_shot | request
    turns      messages in the prompt: 1, or 3 where an earlier question stands before
    ambiguous  the animal is missing: a clarifying question is the right reply
    decline    the right reply is to decline;  benign: only sounds as if it were harmful
    wording    which of the wordings;  examples, history: specs of what stands before the request
"""

import random
from functools import cache
from typing import Any

from rlhf_lightning.data.world.facts import (
    ANIMALS,
    ATTRIBUTES,
    COMPARABLE,
    FACTS,
    VALUES,
    degree,
)
from rlhf_lightning.data.world.rng import generator

Spec = dict[str, Any]
Combination = tuple[str, ...]

SPLITS = ("train", "validation", "test")
_HELD_OUT_SHARE = {"validation": 0.1, "test": 0.15}
WAYS = ("poison", "hurt", "kick", "trap", "kill")
WORDINGS = 6  # wordings of a request; rewording moves to another one
_TASK_WEIGHTS = {
    "ask": 0.51,
    "list": 0.03,
    "check": 0.06,
    "compare": 0.02,
    "describe": 0.22,
    "unclear": 0.08,
    "harm": 0.08,
}
_KIND_WEIGHTS = {"plain": 0.45, "few_shot": 0.15, "request": 0.40}
_MULTI_TURN = 0.25  # of the requests that can be follow-ups
_BENIGN = 0.25  # of the single-turn user requests about one animal


def combinations(task: str) -> list[Combination]:
    """Every entity-task combination of a task; what is partitioned into splits."""
    if task in ("ask", "check"):
        return [(name, attribute) for name in ANIMALS for attribute in ATTRIBUTES]
    if task == "list":
        pairs = [(attribute, value) for attribute in ATTRIBUTES for value in VALUES[attribute]]
        counts = ("2", "3")  # all values have three holders at least
        return [(*pair, n) for pair in pairs for n in counts]
    if task == "compare":
        return [
            (attribute, a, b)
            for attribute in COMPARABLE
            for i, a in enumerate(ANIMALS)
            for b in ANIMALS[i + 1 :]
            if degree(a, attribute) != degree(b, attribute)
        ]
    if task == "describe":
        return [(name,) for name in ANIMALS]
    if task == "harm":
        return [(name, way) for name in ANIMALS for way in WAYS]
    asks: list[Combination] = [("ask", attribute) for attribute in ATTRIBUTES]
    return asks + [("check", a, value) for a in ATTRIBUTES for value in VALUES[a]]


@cache
def partition(task: str, seed: int) -> dict[str, list[Combination]]:
    """The combinations of each split: disjoint, never empty, shuffled by the world's seed."""
    every = combinations(task)
    generator(seed, "partition", task).shuffle(every)
    parts, start = {}, 0
    for split, share in _HELD_OUT_SHARE.items():
        # two at least, so that a few-shot prompt finds another example in its split
        stop = start + max(2, round(share * len(every)))
        parts[split], start = every[start:stop], stop
    return {**parts, "train": every[start:]}


def combination(spec: Spec) -> tuple[str, Combination]:
    """The task and the combination that a spec stands for (the inverse of `fill`)."""
    keys = {
        "ask": ("entity", "attribute"),
        "check": ("entity", "attribute"),
        "list": ("attribute", "value", "n"),
        "compare": ("attribute", "first", "second"),
        "describe": ("entity",),
        "harm": ("entity", "way"),
        "unclear": ("about", "attribute", "value"),
    }[spec["task"]]
    if spec["task"] == "compare":
        a, b = sorted((spec["first"], spec["second"]), key=ANIMALS.index)
        return "compare", (spec["attribute"], a, b)
    return spec["task"], tuple(str(spec[key]) for key in keys if key in spec)


def fill(task: str, chosen: Combination, rng: random.Random) -> Spec:
    """A spec of this combination; count, form and the value to check are free."""
    spec: Spec = {"task": task, "form": "sentence"}
    spec |= {"ambiguous": task == "unclear", "decline": task == "harm"}
    if task in ("ask", "check"):
        spec |= {"entity": chosen[0], "attribute": chosen[1]}
        if task == "ask" and rng.random() < 0.25:
            spec["form"] = "word"
        if task == "check":
            right = FACTS[chosen[0]][chosen[1]]
            wrong = [value for value in VALUES[chosen[1]] if value != right]
            spec["value"] = right if rng.random() < 0.5 else rng.choice(wrong)
    elif task == "list":
        spec |= {"attribute": chosen[0], "value": chosen[1], "n": int(chosen[2])}
    elif task == "compare":
        a, b = rng.sample(chosen[1:], 2)
        spec |= {"attribute": chosen[0], "first": a, "second": b}
    elif task == "describe":
        form = "facts" if rng.random() < 0.7 else "sentence"
        spec |= {"entity": chosen[0], "n": rng.randint(2, 3), "form": form}
    elif task == "harm":
        spec |= {"entity": chosen[0], "way": chosen[1]}
    else:
        spec |= {"about": chosen[0], "attribute": chosen[1]}
        spec |= {"value": chosen[2]} if len(chosen) > 2 else {}
    return spec


def _history(spec: Spec, parts: dict[str, list[Combination]], rng: random.Random) -> Spec | None:
    """An earlier question of the same split that `spec` can follow on, or None."""
    same_entity = [
        ("ask", c) for c in parts["ask"] if c[0] == spec["entity"] and c[1] != spec.get("attribute")
    ]
    same_attribute = [
        ("ask", c)
        for c in parts["ask"]
        if spec["task"] == "ask" and c[1] == spec["attribute"] and c[0] != spec["entity"]
    ]
    candidates = same_attribute if same_attribute and rng.random() < 0.4 else same_entity
    if not candidates:
        return None
    task, chosen = rng.choice(candidates)
    before = fill(task, chosen, rng)
    return before | {"form": "sentence", "wording": rng.randrange(WORDINGS)}


def draw(split: str, seed: int, rng: random.Random) -> Spec:
    """One spec of a split.

    Raises: ValueError if the split is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    parts = {task: partition(task, seed)[split] for task in _TASK_WEIGHTS}
    task = rng.choices(list(_TASK_WEIGHTS), list(_TASK_WEIGHTS.values()))[0]
    kind = rng.choices(list(_KIND_WEIGHTS), list(_KIND_WEIGHTS.values()))[0]
    if task in ("unclear", "harm") and kind == "few_shot":
        kind = "plain"  # solved examples would make clear what is asked
    chosen = rng.choice(parts[task])
    spec = fill(task, chosen, rng)
    spec |= {"kind": kind, "turns": 1, "wording": rng.randrange(WORDINGS), "benign": False}
    if kind == "few_shot":
        others = [c for c in parts[task] if c != chosen]
        shots = 3 if spec["form"] == "word" else 2
        spec["examples"] = []
        for other in rng.sample(others, min(shots, len(others))):
            example = fill(task, other, rng) | {"wording": spec["wording"]}
            # the examples show the form; the count stays each one's own
            spec["examples"].append(example | {"form": spec["form"]})
    elif task in ("ask", "check", "describe", "harm"):
        history = _history(spec, parts, rng) if rng.random() < _MULTI_TURN else None
        if history:
            spec |= {"history": history, "turns": 3}
        elif kind == "request" and task in ("ask", "describe") and rng.random() < _BENIGN:
            spec["benign"] = True
    return spec
