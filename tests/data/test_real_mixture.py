"""Mixtures of finite sources: splits across sources, ends of repetition, what was removed."""

import json
import logging
from collections import Counter

import pytest

from rlhf_lightning.config import MixConfig, SourceConfig
from rlhf_lightning.data.mixture import Mixture
from rlhf_lightning.data.records import KINDS, key_hash, prompt_key, split_key
from rlhf_lightning.errors import UserError

SPLITS = ("train", "validation", "test")


class Fixed:
    """A source with splits of its own: question i for i in `train`, `validation` and `test`."""

    kinds = ("demonstration", "prompt")

    def __init__(self, train, validation, test, endless=False):
        self.rows = {"train": range(*train), "validation": range(*validation), "test": range(*test)}
        self.endless = endless

    def size(self, kind, split):
        return None if self.endless and split == "train" else len(self.rows[split])

    def record(self, kind, split, index):
        rows = self.rows[split]
        user = {"role": "user", "content": f"Question {rows[index % len(rows)]}"}
        if kind == "prompt":
            return {"prompt": [user]}
        return {"messages": [user, {"role": "assistant", "content": "Yes."}]}


def fixed(*spans, **args):
    names = ("train", "validation", "test")
    args |= dict(zip(names, spans, strict=True))
    return SourceConfig(target="tests.data.test_real_mixture.Fixed", args=args)


def file(tmp_path, name, rows, **settings):
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(path=str(path), **settings)


def asked(i, answer="Yes."):
    return {"prompt": f"question {i}?", "completion": answer}


def compared(i):
    return {"prompt": f"QUESTION  {i}", "chosen": "Yes.", "rejected": "No."}


def mixture(sources, **settings):
    return Mixture(MixConfig(name="t", sources=sources, **settings), 0)


def keys(mix, kind, split):
    size = mix.size(kind, split)
    return {split_key(mix.record(kind, split, i)) for i in range(size)}


def test_a_prompt_is_on_one_side_of_every_split_across_sources_and_kinds(tmp_path):
    mix = mixture(
        {
            "asked": file(tmp_path, "a", map(asked, range(300))),
            "compared": file(tmp_path, "b", map(compared, range(300))),
        },
        validation_fraction=0.2,
        test_fraction=0.2,
    )
    sides = {
        split: set().union(
            *(keys(mix, kind, split) for kind in ("demonstration", "comparison", "prompt"))
        )
        for split in SPLITS
    }
    assert len(set().union(*sides.values())) == 300  # `question 1?` is `QUESTION  1`
    assert sum(map(len, sides.values())) == 300
    assert min(map(len, sides.values())) > 30


def test_prompts_that_differ_in_more_than_marks_stay_apart():
    texts = ["Add 2+2.", "add 2-2", "Is C good?", "Is C++ good?", "don't", "dont"]
    assert len({prompt_key([{"role": "user", "content": text}]) for text in texts}) == len(texts)
    assert prompt_key([{"role": "user", "content": '"Why?"  she said…'}]) == prompt_key(
        [{"role": "user", "content": "why she SAID"}]
    )


def test_what_another_source_holds_out_is_not_trained_on(tmp_path):
    # the source holds out questions 0..9 and 10..19; of its own 15..39, five collide; of the file's 0..29, twenty
    mix = mixture(
        {
            "own": fixed((15, 40), (0, 10), (10, 20)),
            "file": file(tmp_path, "a", map(asked, range(30))),
        },
        validation_fraction=0,
        test_fraction=0,
    )
    held_out = keys(mix, "prompt", "validation") | keys(mix, "prompt", "test")
    assert len(held_out) == 20
    for kind in ("demonstration", "prompt"):
        assert not keys(mix, kind, "train") & held_out
        assert mix.size(kind, "train") == 20 + 10
    # demonstrations and prompts both
    assert mix.removed == {"own": {"in_another_split": 10}, "file": {"in_another_split": 40}}
    assert mix.counts() == {"data/own/in_another_split": 10.0, "data/file/in_another_split": 40.0}


def test_an_endless_source_gives_another_record_for_one_that_is_held_out_elsewhere(tmp_path):
    rows = [asked(i) for i in range(200)]
    sources = {
        "own": fixed((0, 200), (200, 201), (201, 202), endless=True),
        "file": file(tmp_path, "a", rows),
    }
    settings = {"validation_fraction": 0.2, "test_fraction": 0.2, "weights": {"file": 0.0}}
    mix, again = mixture(sources, **settings), mixture(sources, **settings)
    held_out = {
        key_hash(split_key(mix.sources["file"].record("prompt", split, i)))
        for split in ("validation", "test")
        for i in range(mix.sources["file"].size("prompt", split))
    }
    found = [mix.record("prompt", "train", i) for i in range(200)]
    assert not {key_hash(split_key(record)) for record in found} & held_out
    assert found == [again.record("prompt", "train", i) for i in range(200)]
    counted = mix.removed["own"]["in_another_split"]
    assert counted > 50  # about 200 × 0.4
    assert [mix.record("prompt", "train", i) for i in range(200)] == found
    assert mix.removed["own"]["in_another_split"] == counted, "read again, counted once"


def test_held_out_prompts_are_for_the_prompt_kind_alone(tmp_path):
    sources = {
        "asked": file(tmp_path, "a", map(asked, range(500))),
        "compared": file(tmp_path, "b", map(compared, range(500))),
    }
    mix, plain = mixture(sources, held_out_prompts=0.3), mixture(sources)
    prompts = keys(mix, "prompt", "train")
    learnt = keys(mix, "demonstration", "train") | keys(mix, "comparison", "train")
    assert not prompts & learnt
    assert prompts | learnt == keys(plain, "prompt", "train")
    # sd of the share: sqrt(0.3 · 0.7 / 450) = 0.022
    assert len(prompts) / len(prompts | learnt) == pytest.approx(0.3, abs=0.08)
    for split in ("validation", "test"):
        assert keys(mix, "demonstration", split) == keys(plain, "demonstration", split)
    assert mix.removed["asked"]["held_out_prompt"] == len(prompts) + len(learnt)
    with pytest.raises(
        UserError,
        match=r"mix.held_out_prompts must be 0 where a source is endless \(own\), got 0.3",
    ):
        mixture({"own": fixed((0, 9), (9, 10), (10, 11), endless=True)}, held_out_prompts=0.3)
    off = fixed((0, 9), (9, 10), (10, 11), endless=True)
    off.kinds = {"demonstration": False, "prompt": False}
    mixture({"own": off, **sources}, held_out_prompts=0.3)  # it gives no prompts, so it holds none


def test_kinds_restrict_a_source(tmp_path):
    sources = {
        "asked": file(tmp_path, "a", map(asked, range(50)), kinds={"prompt": False}),
        "compared": file(
            tmp_path, "b", map(compared, range(60, 90)), kinds={"comparison": False, "prompt": True}
        ),
    }
    mix = mixture(sources)
    assert [kind for kind in KINDS if mix.has(kind)] == ["demonstration", "prompt"]
    assert {r["source"] for r in mix.records("prompt", "train", 20)} == {"compared"}
    with pytest.raises(
        UserError,
        match=r"no source has comparisons \(asked has demonstration; compared has prompt\)",
    ):
        mix.size("comparison", "train")


def test_an_unknown_kind_is_refused():
    with pytest.raises(
        UserError, match=r"mix.sources.a.kinds must be settings of demonstration, .*, got 'story'"
    ):
        MixConfig(name="t", sources={"a": SourceConfig(path="x", kinds={"story": True})})


def shares(mix, count, start=0):
    return Counter(r["source"] for r in mix.records("text", "train", count, start=start))


def texts(tmp_path, name, count, **settings):
    return file(tmp_path, name, [{"text": f"{name} {i}"} for i in range(count)], **settings)


def test_a_source_that_was_repeated_enough_leaves_its_share_to_the_others(tmp_path):
    sources = {
        "small": texts(tmp_path, "small", 10, max_repeats=2.5),
        "middle": texts(tmp_path, "middle", 300, max_repeats=1),
        "large": texts(tmp_path, "large", 3000),
    }
    mix = mixture(sources, validation_fraction=0, test_fraction=0)
    # turn by turn until small has given 25 and middle 300; then large alone, for ever
    assert shares(mix, 60)["small"] == pytest.approx(20, abs=1)
    first = list(mix.records("text", "train", 625))
    counts = Counter(r["source"] for r in first)
    assert counts == {"small": 25, "middle": 300, "large": 300}
    assert set(Counter(r["text"] for r in first if r["source"] == "small").values()) == {2, 3}
    assert set(Counter(r["text"] for r in first if r["source"] == "middle").values()) == {1}
    assert shares(mix, 5000, start=700) == {"large": 5000}
    assert mix.size("text", "train") == 25 + 300 + 3000


def test_every_index_has_its_record_whatever_was_asked_before(tmp_path):
    sources = {
        "a": texts(tmp_path, "a", 700, max_repeats=2),
        "b": texts(tmp_path, "b", 333, max_repeats=1),
        "c": texts(tmp_path, "c", 1200, max_repeats=1.5),
    }
    weights = {"a": 1.0, "b": 0.7, "c": 2.0}
    mix = mixture(sources, weights=weights, validation_fraction=0, test_fraction=0)
    total = mix.size("text", "train")
    assert total == 1400 + 333 + 1800
    straight = [mix.record("text", "train", i)["text"] for i in range(total)]
    times = Counter(straight)
    assert {times[f"a {i}"] for i in range(700)} == {2}
    assert {times[f"b {i}"] for i in range(333)} == {1}
    assert {times[f"c {i}"] for i in range(1200)} == {1, 2}
    other = mixture(sources, weights=weights, validation_fraction=0, test_fraction=0)
    assert [other.record("text", "train", i)["text"] for i in range(0, total, 97)] == straight[::97]


def test_when_all_were_given_the_mixture_starts_over_and_says_so(tmp_path, caplog):
    sources = {
        "a": texts(tmp_path, "a", 20, max_repeats=1),
        "b": texts(tmp_path, "b", 5, max_repeats=2),
    }
    mix = mixture(sources, validation_fraction=0, test_fraction=0)
    with caplog.at_level(logging.WARNING, logger="rlhf_lightning"):
        list(mix.records("text", "train", 30))
        assert not caplog.messages
        again = list(mix.records("text", "train", 30, start=30))
    assert caplog.messages == [
        "mix: all 30 text for training were given, each source's max_repeats times; they start over"
    ]
    assert Counter(r["source"] for r in again) == {"a": 20, "b": 10}


def test_a_held_out_record_is_asked_once_however_small_its_source(tmp_path):
    sources = {"a": texts(tmp_path, "a", 400), "b": texts(tmp_path, "b", 40)}
    mix = mixture(sources, validation_fraction=0.4)
    size = mix.size("text", "validation")
    assert len({r["text"] for r in mix.records("text", "validation", size)}) == size


def test_what_was_left_out_is_said_once(tmp_path):
    rows = [compared(1), compared(1), compared(2) | {"rejected": "Yes."}]
    mix = mixture({"a": file(tmp_path, "a", rows)})
    said = []
    mix.say_removed(said.append)
    mix.say_removed(said.append)
    assert said == ["left out of mix.sources.a: 1 duplicate, 1 identical"]


def test_a_relative_path_starts_from_the_root(tmp_path):
    file(tmp_path, "a", map(asked, range(50)))
    mix = mixture({"a": SourceConfig(path="a.jsonl")}, root=str(tmp_path))
    assert [kind for kind in KINDS if mix.has(kind)] == ["demonstration", "prompt"]
    missing = rf"mix.sources.a.path must be a file or folder under mix.root={tmp_path}, got 'b.jsonl': nothing at {tmp_path}/b.jsonl"
    with pytest.raises(UserError, match=missing):
        mixture({"a": SourceConfig(path="b.jsonl")}, root=str(tmp_path))


def test_a_dataset_is_read_like_a_file(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = [asked(i) for i in range(80)]
    folder = tmp_path / "owls"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from_file = mixture({"a": file(tmp_path, "a", rows)})
    hub = SourceConfig(hub=str(folder), hub_split="train")
    from_hub = mixture({"a": hub})
    for kind in ("demonstration", "prompt"):
        for split in SPLITS:
            size = from_file.size(kind, split)
            assert from_hub.size(kind, split) == size > 0
            assert list(from_hub.records(kind, split, size)) == list(
                from_file.records(kind, split, size)
            )
    identity = from_hub.identity()["a"]
    assert identity["name"] == "owls"
    assert len(identity["sha256"]) == 64
    half = mixture({"a": SourceConfig(hub=str(folder), hub_split="train[:50%]")})
    assert sum(half.size("demonstration", split) for split in SPLITS) == 40
    assert half.identity() != from_hub.identity()
    with pytest.raises(
        UserError,
        match=r"mix.sources.a.hub must be a dataset that can be loaded, got '.*owls' \(.*\)",
    ):
        mixture({"a": SourceConfig(hub=str(folder), hub_split="nowhere")})


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ([b"\xff\xfe"], "'utf-8' codec can't decode"),
        ("image", "a value of type \\w+, which is no text"),
    ],
)
def test_a_dataset_of_something_else_than_text_is_refused_with_its_row(tmp_path, column, reason):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    if column == "image":
        image = pytest.importorskip("PIL.Image").new("RGB", (2, 2))
        features = datasets.Features(
            {"prompt": datasets.Value("string"), "extra": datasets.Image()}
        )
        table = datasets.Dataset.from_dict({"prompt": ["a"], "extra": [image]}, features=features)
    else:
        table = datasets.Dataset.from_dict({"prompt": ["a"], "extra": column})
    table.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match=rf"\[0\]: must be text, numbers and lists, got {reason}"):
        mixture({"a": SourceConfig(hub=str(tmp_path))})
