"""Splits that somebody else has made: `mix.sources.NAME.split`."""

import json

import pytest

from rlhf_lightning.config import SourceConfig
from rlhf_lightning.data.records import KINDS
from rlhf_lightning.errors import UserError
from tests.data.test_real_mixture import SPLITS, asked, compared, file, fixed, keys, mixture


def numbers(mix, split, kind="demonstration"):
    """Which questions of `asked` a split has."""
    return sorted(int(key.rsplit(maxsplit=1)[-1]) for key in keys(mix, kind, split))


@pytest.mark.parametrize("names", ["abc", "cba"])
def test_files_that_somebody_has_split_keep_their_splits(tmp_path, names):
    """Questions 0..29, 20..39 and 35..49: what test has is in no other split, what validation has not in train."""
    first, second, third = names
    mix = mixture(
        {
            first: file(tmp_path, "train", map(asked, range(30)), split="train"),
            second: file(tmp_path, "dev", map(asked, range(20, 40)), split="validation"),
            third: file(tmp_path, "test", map(asked, range(35, 50)), split="test"),
        },
        validation_fraction=0.4,  # of nothing
        test_fraction=0.4,
    )
    for kind in ("demonstration", "prompt"):
        assert numbers(mix, "train", kind) == list(range(20))
        assert numbers(mix, "validation", kind) == list(range(20, 35))
        assert numbers(mix, "test", kind) == list(range(35, 50))
    assert mix.removed == {
        first: {"in_another_split": 20},
        second: {"in_another_split": 10},
    }


def test_a_test_file_takes_its_prompts_from_a_file_that_is_split_by_hash(tmp_path):
    mix = mixture(
        {
            "all": file(tmp_path, "all", map(compared, range(200))),
            "test": file(tmp_path, "test", map(asked, range(150, 170)), split="test"),
        },
        validation_fraction=0.3,
        test_fraction=0.0,
    )
    assert numbers(mix, "test") == list(range(150, 170))
    held_out = keys(mix, "prompt", "test")
    for split in ("train", "validation"):
        assert not keys(mix, "comparison", split) & held_out
    assert mix.size("comparison", "train") + mix.size("comparison", "validation") == 180
    assert 30 < mix.size("comparison", "validation") < 90
    assert mix.removed["all"]["in_another_split"] == 40  # comparisons and prompts


def test_a_source_with_splits_of_its_own_and_a_test_file_keep_away_from_each_other(tmp_path):
    mix = mixture(
        {
            "own": fixed((0, 30), (30, 40), (40, 50)),
            "file": file(tmp_path, "a", map(asked, range(20, 60)), split="test"),
        }
    )
    assert {mix.record("prompt", "test", i)["source"] for i in range(30)} == {"own", "file"}
    # of the file's 20..59 the other source has 30..39 for validation
    assert mix.size_of("file", "prompt", "test") == 30
    assert mix.size_of("own", "prompt", "train") == 20  # 0..19


def test_raw_text_that_is_for_one_split_is_for_no_other(tmp_path):
    rows = [{"text": f"The owl number {i} hunts."} for i in range(20)]
    mix = mixture({"books": file(tmp_path, "a", rows, split="train")}, test_fraction=0.4)
    assert mix.size("text", "train") == 20 and not mix.has("text", "test")


def test_a_split_that_no_file_is_for_is_an_error_that_says_how_a_file_is(tmp_path):
    mix = mixture({"a": file(tmp_path, "a", map(asked, range(9)), split="train")})
    hint = r"in the validation split \(a: 0 records, weight 1\); for a file of them: mix.sources.NAME.split=validation$"
    with pytest.raises(UserError, match=hint):
        mix.size("demonstration", "validation")
    by_hash = {"b": file(tmp_path, "b", map(asked, range(9)))}
    mix = mixture(by_hash, test_fraction=0, validation_fraction=0)
    hint = r"; mix.test_fraction=0 gives it none of 9 that are for training now: a larger share takes more$"
    with pytest.raises(UserError, match=hint):
        mix.size("prompt", "test")
    of_its_own = mixture({"own": fixed((0, 9), (0, 0), (9, 12))})
    with pytest.raises(UserError, match=r"in the validation split \(own: 0 records, weight 1\)$"):
        of_its_own.size("prompt", "validation")


def test_a_split_is_one_of_three():
    with pytest.raises(UserError, match=r"sources.a.split must be train, validation, test or null"):
        mixture({"a": SourceConfig(path="x", split="dev")})


def sides(mix):
    """Split → the prompts of all its kinds."""
    kinds = [kind for kind in KINDS if kind != "text"]
    return {
        split: set().union(*(keys(mix, kind, split) for kind in kinds if mix.has(kind, split)))
        for split in SPLITS
    }


@pytest.mark.parametrize("names", ["ab", "ba"])
@pytest.mark.parametrize("split", SPLITS)
def test_a_file_with_a_split_beside_one_that_is_split_by_hash(tmp_path, split, names):
    given, by_hash = names
    mix = mixture(
        {
            given: file(tmp_path, "given", map(asked, range(100)), split=split),
            by_hash: file(tmp_path, "hash", map(compared, range(50, 200))),
        },
        validation_fraction=0.3,
        test_fraction=0.3,
    )
    found = sides(mix)
    assert sum(map(len, found.values())) == len(set().union(*found.values())) == 200
    assert min(map(len, found.values())) > 20


def test_what_is_over_the_limit_of_a_test_file_is_free_for_training(tmp_path):
    rows = [asked(i) for i in range(40)]
    mix = mixture(
        {
            "all": file(tmp_path, "all", rows, split="train"),
            "some": file(tmp_path, "some", rows, split="test", limit=6),
        }
    )
    assert numbers(mix, "test") == numbers(mix, "test", "prompt") == list(range(6))
    assert numbers(mix, "train") == list(range(6, 40))


def test_kinds_that_are_off_hold_nothing_out(tmp_path):
    rows = [asked(i) for i in range(10)] + [{"prompt": "question 3?", "completion": "No."}]
    off = {"demonstration": False}
    mix = mixture(
        {
            "all": file(tmp_path, "all", rows, split="train"),
            "one": file(tmp_path, "one", [{"prompt": "question 7?"}], split="test"),
            "off": file(tmp_path, "off", rows, split="test", kinds=off | {"prompt": False}),
        }
    )
    assert numbers(mix, "train", "prompt") == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert mix.removed["all"] == {"in_another_split": 2}  # demonstration and prompt


def test_a_prompt_of_a_test_file_is_no_demonstration_in_training(tmp_path):
    mix = mixture(
        {
            "shown": file(tmp_path, "shown", map(asked, range(20))),
            "test": file(
                tmp_path, "test", [{"prompt": f"Question {i}"} for i in range(5, 9)], split="test"
            ),
        },
        validation_fraction=0,
        test_fraction=0,
    )
    assert numbers(mix, "train") == numbers(mix, "train", "prompt") == [*range(5), *range(9, 20)]
    assert numbers(mix, "test", "prompt") == [5, 6, 7, 8]


def test_each_record_that_is_left_out_is_counted_once(tmp_path):
    """Of the training file's 200 prompts 40 are in the test file, and a share is for PPO alone."""
    mix = mixture(
        {
            "train": file(tmp_path, "train", map(asked, range(200)), split="train"),
            "test": file(tmp_path, "test", map(asked, range(40)), split="test"),
        },
        held_out_prompts=0.3,
    )
    kept = {kind: mix.size(kind, "train") for kind in ("demonstration", "prompt")}
    assert sum(kept.values()) == 160  # each of the others is for one of the two
    assert mix.removed["train"] == {"in_another_split": 80, "held_out_prompt": 160}
    assert mix.size("demonstration", "test") == mix.size("prompt", "test") == 40


def test_dialogues_of_a_split_and_their_limit(tmp_path):
    rows = [asked(i) for i in range(10)]
    test = file(tmp_path, "a", rows, split="test", dialogue_turns=2, limit=3)
    mix = mixture({"a": test})
    assert mix.size("demonstration", "test") == 3
    turns = [len(record["messages"]) for record in mix.records("demonstration", "test", 3)]
    assert turns == [4, 4, 4]


def test_a_datasets_own_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    folder = tmp_path / "owls"
    folder.mkdir()
    spans = {"train": range(40), "validation": range(30, 50)}
    for name, span in spans.items():
        rows = "".join(json.dumps(asked(i)) + "\n" for i in span)
        (folder / f"{name}.jsonl").write_text(rows)
    mix = mixture(
        {
            name: SourceConfig(hub=str(folder), hub_split=name, split=name)
            for name in ("train", "validation")
        }
    )
    assert numbers(mix, "train") == list(range(30))
    assert numbers(mix, "validation") == list(range(30, 50))
