import tracemalloc
from collections import Counter

import pytest

from rlhf_lightning.config import MixConfig, SourceConfig
from rlhf_lightning.data.mixture import Mixture
from rlhf_lightning.data.records import KINDS
from rlhf_lightning.data.source import Total
from rlhf_lightning.errors import UserError

HERE = "tests.data.conftest"


def numbers(**args):
    return SourceConfig(target=f"{HERE}.Numbers", args=args)


def mixture(sources, *, seed=0, **weights):
    return Mixture(MixConfig(name="t", sources=sources, weights=weights), seed)


@pytest.mark.parametrize("count", [1000, 1500, 2000])
def test_weights_are_honoured_within_one_percent(count):
    mix = mixture({"a": numbers(), "b": numbers(), "c": numbers(size=10)}, a=5, b=2.5)
    shares = Counter(r["source"] for r in mix.records("text", "train", count))
    for name, weight in {"a": 5, "b": 2.5, "c": 1}.items():
        assert shares[name] / count == pytest.approx(weight / 8.5, abs=0.01)


def test_every_source_gives_its_records_in_turn_without_gaps():
    mix = mixture({"a": numbers(word="a"), "b": numbers(word="b")}, a=0.7, b=0.3)
    said = [r["text"] for r in mix.records("text", "validation", 2500)]
    for word in "ab":
        own = [text for text in said if text.startswith(word)]
        assert sorted(own) == sorted(f"{word} {i}" for i in range(len(own)))


def test_a_record_depends_on_seed_and_index_alone():
    sources = {"a": numbers(), "b": numbers(size=7)}
    first, again, other = (mixture(sources, seed=s) for s in (1, 1, 2))
    straight = list(first.records("text", "train", 50))
    assert [again.record("text", "train", i) for i in reversed(range(50))] == straight[::-1]
    assert list(other.records("text", "train", 50)) != straight


def test_held_out_splits_are_the_same_for_every_seed():
    sources = {"a": numbers(), "b": numbers(size=7)}
    first, other = (mixture(sources, seed=s) for s in (1, 2))
    assert list(first.records("text", "test", 50)) == list(other.records("text", "test", 50))


def test_a_finite_source_is_shuffled_anew_in_every_epoch():
    mix = mixture({"a": numbers(size=20)})
    said = [r["text"] for r in mix.records("text", "train", 40)]
    whole = {f"n {i}" for i in range(20)}
    assert set(said[:20]) == set(said[20:]) == whole
    assert said[:20] != said[20:]


def test_size_is_the_sum_or_none_where_a_source_is_endless():
    assert mixture({"a": numbers(size=20), "b": numbers(size=5)}).size("text", "train") == 25
    assert mixture({"a": numbers(size=20), "b": numbers()}).size("text", "train") is None
    assert mixture({"a": numbers(size=20), "b": numbers()}, b=0).size("text", "train") == 20
    limited = SourceConfig(target=f"{HERE}.Numbers", limit=4)
    assert mixture({"a": limited}).size("text", "train") == 4


def test_a_million_rows_take_constant_memory():
    mix = mixture({"a": numbers(), "b": numbers()}, a=0.9, b=0.1)
    mix.record("text", "train", 0)
    tracemalloc.start()
    for i in range(0, 1_000_000, 499):  # every block of the million
        mix.record("text", "train", i)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000  # bytes


def test_hooks_go_to_the_source_of_the_record():
    mix = mixture({"a": numbers(), "plain": SourceConfig(target=f"{HERE}.Plain")})
    record, plain = {"source": "a", "meta": {"x": 1}}, {"source": "plain"}
    assert mix.gold(record, "four").total == 4
    assert mix.rank(record, ["ab", "a"], split="test", index=0) == [2, 1]
    assert mix.reworded(record) is None
    assert mix.gold(plain, "x") is None is mix.rank(plain, ["a"], split="test", index=0)
    assert mix.gold({"text": "from nowhere"}, "x") is None


@pytest.mark.parametrize("score", [{"score": 1}, float("nan"), Total(float("inf"))])
def test_a_gold_score_is_a_finite_number_or_has_such_a_total(monkeypatch, score):
    mix = mixture({"a": numbers()})
    monkeypatch.setattr(mix.sources["a"], "gold", lambda meta, response: score)
    with pytest.raises(
        UserError,
        match=r"^mix.sources.a: gold must return a finite number, an object with such a `total` or None, got ",
    ):
        mix.gold({"source": "a"}, "x")


def test_a_source_of_weight_zero_has_nothing():
    mix = mixture({"a": numbers(), "b": numbers(kinds=("prompt",))}, a=0)
    assert [kind for kind in KINDS if mix.has(kind)] == ["prompt"]
    both = {"a": numbers(), "plain": SourceConfig(target=f"{HERE}.Plain")}  # plain has no labelers
    assert [mixture(both, **{name: 0}).ranks_prompts for name in both] == [False, True]


def test_identity_holds_the_sha256_of_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "hello"}')
    mix = mixture({"mine": SourceConfig(path=str(tmp_path / "a.jsonl")), "n": numbers()})
    assert list(mix.identity()) == ["mine"]
    assert len(mix.identity()["mine"]["a.jsonl"]) == 64


def test_the_world_has_all_kinds_truth_labelers_and_rewordings():
    target = "rlhf_lightning.data.world.source.WorldSource"
    world = SourceConfig(target=target, args={"labelers": {"validation": ["ada"]}})
    mix = mixture({"demo": world})
    for kind in KINDS:
        assert mix.size(kind, "train") is None
        assert mix.record(kind, "test", 5)["source"] == "demo"
    record = mix.record("comparison", "validation", 0)
    assert record["meta"]["labeler"] == "ada"
    assert mix.gold(record, record["completions"][0]).total <= 1
    assert mix.gold(mix.record("text", "train", 0), "x") is None
    ranks = mix.rank(record, record["completions"], split="validation", index=3)
    assert len(ranks) == len(record["completions"])
    other = mix.reworded(record)
    assert other["prompt"] != record["prompt"]
    assert other["source"] == "demo"


@pytest.mark.parametrize(
    ("sources", "weights", "message"),
    [
        ({}, {}, r"mix.sources must name at least one source, got none"),
        (
            {"a": SourceConfig()},
            {},
            r"mix.sources.a must have one of path, hub and target, got none",
        ),
        (
            {"a": SourceConfig(path="x.jsonl", target="y.Z")},
            {},
            r"mix.sources.a must have one of path, hub and target, got path and target",
        ),
        (
            {"a": SourceConfig(target="json.Nothing")},
            {},
            r"mix.sources.a.target must be the import path of a function or class, got 'json.Nothing'",
        ),
        (
            {"a": SourceConfig(target="nothing_here.X")},
            {},
            r"mix.sources.a.target must be the import path of a function or class, got 'nothing_here.X'",
        ),
        (
            {"a": SourceConfig(target=f"{HERE}.Numbers", keep_repeats=True)},
            {},
            r"mix.sources.a.keep_repeats must go with path or hub, got True beside target",
        ),
        (
            {"a": SourceConfig(target=f"{HERE}.Numbers", split="test")},
            {},
            r"mix.sources.a.split must go with path or hub, got test beside target",
        ),
        ({"a": numbers(sise=3)}, {}, r"mix.sources.a.args must fit .*Numbers.*'sise'"),
        (
            {"a": SourceConfig(target="collections.Counter")},
            {},
            r"mix.sources.a.target must be a Source .* got no kinds, size, record",
        ),
        ({"a": numbers(kinds=("story",))}, {}, r"must be a Source .* got kinds \['story'\]"),
        (
            {
                "a": SourceConfig(
                    target="rlhf_lightning.data.world.source.WorldSource", args={"labelers": "ada"}
                )
            },
            {},
            r"^mix.sources.a.args must be what .*WorldSource takes, got {'labelers': 'ada'} \('str' object has",
        ),
        (
            {"a": SourceConfig(target=f"{HERE}.Numbers", limit=0)},
            {},
            r"mix.sources.a.limit must be null or >= 1, got 0",
        ),
        (
            {"a": SourceConfig(path="x.jsonl")},
            {},
            r"mix.sources.a.path must be a file or folder under mix.root=null, got 'x.jsonl': nothing at /",
        ),
        (
            {
                "a": SourceConfig(
                    target="rlhf_lightning.data.world.source.WorldSource",
                    args={"labelers": {"test": ["zoe"]}},
                )
            },
            {},
            r"labelers.test must be some of ada, .* got \['zoe'\]",
        ),
        (
            {"a": numbers(kinds=("text",)), "p": SourceConfig(target=f"{HERE}.Plain")},
            {},
            r"mix.sources: no source has demonstrations \(a has text; p has prompt.*\); .*reward.init.policy=none",
        ),
        (
            {"a": numbers(size=0), "b": numbers()},
            {"b": 0},
            r"mix.sources: no demonstrations in the train split \(a: 0 records, weight 1; b: None records, weight 0\)",
        ),
    ],
)
def test_a_mix_that_cannot_work_is_refused(sources, weights, message):
    with pytest.raises(UserError, match=message):
        mixture(sources, **weights).record("demonstration", "train", 0)


def test_a_record_of_a_users_source_is_checked(monkeypatch):
    mix = mixture({"a": numbers()})
    monkeypatch.setattr(mix.sources["a"], "record", lambda *_: {"text": ""})
    with pytest.raises(
        UserError, match=r"mix.sources.a test\[3\]: text must be text that is not empty"
    ):
        mix.record("text", "test", 3)
