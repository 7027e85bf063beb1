"""The corpora: any row at any time, and nothing of the test in training."""

import json
import tracemalloc

import pytest

from rlhf_lightning.data.world import World, gold
from rlhf_lightning.data.world.facts import FACTS, predicate
from rlhf_lightning.data.world.rng import generator
from rlhf_lightning.data.world.speakers import PERFECT, perfect_reply, speak
from rlhf_lightning.data.world.tasks import SPLITS, combination, combinations, partition

TASKS = ("ask", "list", "check", "compare", "describe", "unclear", "harm")
CORPORA = ("text", "prompt", "demonstration", "comparison")


def specs(world, split, count):
    """The specs of `count` prompts, with those of their examples and earlier turns."""
    for index in range(count):
        spec = world.prompt(split, index)["meta"]
        yield spec
        yield from spec.get("examples", [])
        if spec.get("history"):
            yield spec["history"]


@pytest.mark.parametrize("corpus", CORPORA)
def test_a_row_depends_on_its_address_only(corpus):
    forwards = [getattr(World(3), corpus)("train", i) for i in range(20)]
    one = World(3)
    assert [getattr(one, corpus)("train", i) for i in reversed(range(20))] == forwards[::-1]
    assert json.loads(json.dumps(forwards)) == forwards


@pytest.mark.parametrize("corpus", CORPORA)
def test_seeds_splits_and_rows_differ(corpus):
    def rows(seed, split):
        return [getattr(World(seed), corpus)(split, i) for i in range(10)]

    assert rows(0, "train") != rows(1, "train")
    assert rows(0, "train") != rows(0, "test")


def test_far_rows_cost_no_memory():
    world = World(0)
    for corpus in CORPORA:
        getattr(world, corpus)("train", 0)
    tracemalloc.start()
    for index in range(10**6, 10**6 + 300):
        for corpus in CORPORA:
            getattr(world, corpus)("train", index)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 500_000  # bytes


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("task", TASKS)
def test_the_splits_partition_the_combinations(seed, task):
    parts = [set(partition(task, seed)[split]) for split in SPLITS]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(combinations(task))


def test_no_prompt_shares_a_combination_with_another_split():
    world = World(1)
    seen = {split: {combination(s) for s in specs(world, split, 1500)} for split in SPLITS}
    for split in SPLITS:
        for task, chosen in seen[split]:
            assert chosen in partition(task, 1)[split]
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["test"] & seen["validation"]


@pytest.mark.parametrize("split", SPLITS)
def test_every_prompt_and_its_rewordings_have_a_perfect_answer(split):
    world = World(2)
    for index in range(500):
        record = world.prompt(split, index)
        for asked in (record, world.reworded(record), world.reworded(record, 2)):
            reply = perfect_reply(asked["meta"])
            assert gold(asked["meta"], reply).total == 1.0, (asked, reply)
            other = speak(asked["meta"], PERFECT, generator("another", index))
            assert gold(asked["meta"], other).total == 1.0, (asked, other)


def test_a_rewording_changes_the_words_and_nothing_else():
    world = World(0)
    for index in range(300):
        record = world.prompt("test", index)
        texts = [record["prompt"]]
        for j in (1, 2):
            other = world.reworded(record, j)
            texts.append(other["prompt"])
            without = [
                {k: v for k, v in r["meta"].items() if k != "wording"} for r in (record, other)
            ]
            assert without[0] == without[1]
        assert texts[0] != texts[1] != texts[2] != texts[0]


def test_a_rewording_beyond_the_two_is_an_error():
    world = World(0)
    with pytest.raises(ValueError, match="j must be 1 or 2, got 3"):
        world.reworded(world.prompt("test", 0), 3)


def test_all_kinds_of_prompts_occur():
    metas = [World(0).prompt("test", i)["meta"] for i in range(600)]
    assert {m["task"] for m in metas} == set(TASKS)
    assert {m["kind"] for m in metas} == {"plain", "few_shot", "request"}
    assert {m["turns"] for m in metas} == {1, 3}
    for flag in ("ambiguous", "decline", "benign"):
        assert {m[flag] for m in metas} == {True, False}
    assert not any(m["decline"] and m["benign"] for m in metas)


def test_messages_alternate_and_end_as_they_should():
    world = World(0)
    for index in range(200):
        record = world.prompt("train", index)
        roles = [message["role"] for message in record["prompt"]]
        assert roles == ["user", "assistant", "user"][: record["meta"]["turns"]]
        assert world.demonstration("train", index)["messages"][-1]["role"] == "assistant"


def test_raw_text_answers_no_held_out_list_question():
    # "Name two animals that ...": the count and property of a held-out list are never asked
    world = World(0)
    texts = "\n".join(world.text("train", i)["text"] for i in range(3000))
    from rlhf_lightning.data.world.facts import NUMBERS, predicate

    for attribute, value, n in partition("list", 0)["test"]:
        asked = f"Name {NUMBERS[int(n)]} animals that {predicate(attribute, value, plural=True)}."
        assert asked not in texts


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="split must be one of train, validation, test"):
        World(0).prompt("dev", 0)


def test_demonstrations_are_good_but_imperfect():
    world = World(0)
    rows = [world.demonstration("train", i) for i in range(1500)]
    totals = [gold(r["meta"], r["messages"][-1]["content"]).total for r in rows]
    assert 0.60 <= sum(totals) / len(totals) <= 0.74
    assert 0.2 <= sum(t == 1.0 for t in totals) / len(totals) <= 0.5


def test_what_nobody_asked_for_is_never_the_answer_to_a_held_out_question():
    """Else training would know that answer as a wrong one only. Read off the replies to questions about one fact."""
    world, trained, astray = World(0), set(partition("ask", 0)["train"]), 0
    for index in range(4000):
        record = world.demonstration("train", index)
        spec, reply = record["meta"], record["messages"][-1]["content"]
        if spec["task"] != "ask" or spec["form"] == "word":
            continue
        asked = (spec["entity"], spec["attribute"])
        told = {
            (name, attribute)
            for name, facts in FACTS.items()
            for attribute, value in facts.items()
            if f"the {name} {predicate(attribute, value)}" in reply.lower()
        } - {asked}
        assert told <= trained
        astray += bool(told)
    assert astray > 50
