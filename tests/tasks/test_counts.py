"""What a stage left out or cut is in its metrics, in its artifact's manifest and in its log."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_lightning.data.index import Rules, splits_of
from rlhf_lightning.data.records import SPLITS, key_hash, split_key
from tests.harness import rlhf_here

LONG = "The otter swims. " * 60
"""At least a token a word and one a mark: more than 200."""
Run = Callable[..., tuple[dict[str, float], str]]


def prompts(split: str, number: int) -> list[dict[str, Any]]:
    """The first short prompts that are in a split, where a fifth is for validation and a fifth for the test."""
    asked = ({"prompt": [{"role": "user", "content": f"Is it {i}?"}]} for i in count())
    rules = Rules(validation_fraction=0.2, test_fraction=0.2)

    def split_of(record: dict[str, Any]) -> str:
        keys = np.array([key_hash(split_key(record))], np.uint64)
        return SPLITS[int(splits_of(keys, rules)[0])]

    return list(islice((record for record in asked if split_of(record) == split), number))


@pytest.fixture
def run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Run:
    """A function: rows and overrides → the metrics of the manifest, and the log."""
    caplog.set_level("INFO", logger="rlhf_lightning")  # as the command has it

    def done(rows: list[dict[str, Any]], *overrides: str) -> tuple[dict[str, float], str]:
        path, place = tmp_path / "mine.jsonl", tmp_path / "run"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        mine = ["mix=files", f"mix.sources.mine.path={path}", "logger=none", f"run_dir={place}"]
        shares = ["mix.validation_fraction=0.2", "mix.test_fraction=0.2"]
        metrics = rlhf_here(f"outputs={tmp_path / 'outputs'}", *mine, *shares, *overrides)
        manifest = json.loads((place / "artifact/manifest.json").read_text())
        assert manifest["metrics"].items() <= metrics.items()
        return manifest["metrics"], (place / "log.txt").read_text()

    return done


@pytest.mark.parametrize(("over_long", "said"), [("drop", "3 too long"), ("cut", "3 cut")])
def test_demonstrations_left_out_are_counted(run: Run, over_long: str, said: str) -> None:
    def demonstration(record: dict[str, Any], reply: str) -> dict[str, Any]:
        return {"messages": [*record["prompt"], {"role": "assistant", "content": reply}]}

    train = prompts("train", 43)
    good = [demonstration(record, "It is.") for record in train[:40]]
    long = [demonstration(record, LONG) for record in train[40:]]
    held_out = [demonstration(record, "It is.") for record in prompts("validation", 4)]
    metrics, log = run(
        [*good, *good[:2], *long, *held_out],
        *("task=sft", "sft.init.policy=none", f"mix.over_long={over_long}"),
    )
    assert metrics["data/mine/duplicate"] == 2
    assert "sft.examples=" not in log  # no less than there are
    assert "but the texts give" in log  # of some 60 rows, no thousand tokens
    assert metrics["sft/examples"] == (40 if over_long == "drop" else 43)
    assert metrics["sft/examples_too_long"] == (3 if over_long == "drop" else 0)
    assert metrics["sft/examples_cut"] == (3 if over_long == "cut" else 0)
    assert "left out of mix.sources.mine: 2 duplicate" in log
    assert said in log


@pytest.mark.parametrize("over_long", ["drop", "cut"])
def test_completions_and_prompts_left_out_are_counted(run: Run, over_long: str) -> None:
    def comparison(record: dict[str, Any], *completions: str) -> dict[str, Any]:
        return {**record, "completions": completions, "ranks": list(range(len(completions)))}

    train = prompts("train", 25)
    good = [comparison(record, "It is.", "No.") for record in train[:20]]
    third = [comparison(record, "It is.", "No.", LONG) for record in train[20:23]]
    second = [comparison(record, "It is.", LONG) for record in train[23:]]  # keep no pair
    held_out = [comparison(r, "It is.", "No.") for s in SPLITS[1:] for r in prompts(s, 4)]
    metrics, log = run(
        [*good, *good[:2], *third, *second, *held_out],
        *("task=reward", "reward.init.policy=none", "reward.completions=speakers"),
        *("reward.prompts=25", f"mix.over_long={over_long}"),
    )
    dropped = over_long == "drop"
    assert metrics["data/mine/duplicate"] == 2
    assert (metrics["reward/prompts"], metrics["reward/completions"]) == (25, 53)
    assert metrics["reward/completions_too_long"] == (5 if dropped else 0)
    assert metrics["reward/prompts_dropped"] == (2 if dropped else 0)
    assert metrics["reward/prompts_and_completions_cut"] == (0 if dropped else 5)
    assert "left out of mix.sources.mine: 2 duplicate" in log
    lines = ("5 completions too long", "2 prompts dropped", "5 prompts and completions cut")
    assert [line in log for line in lines] == [dropped, dropped, not dropped]


@pytest.mark.parametrize("over_long", ["drop", "cut"])
def test_prompts_left_out_are_counted(run: Run, over_long: str) -> None:
    """Those that take the places of the three that are too long are short."""
    train = prompts("train", 16)
    long = [{"prompt": [*r["prompt"], {"role": "user", "content": LONG}]} for r in train[13:]]
    metrics, log = run(
        [*train[:13], *train[:2], *long, *prompts("validation", 4)],
        *("task=ppo", "ppo.init.policy=none", "ppo.iterations=1", "ppo.epochs=1"),
        *("reward_source=function", "reward_source.parts.function.target=tests.rewards.mine.words"),
        f"mix.over_long={over_long}",
    )
    dropped = over_long == "drop"
    assert metrics["data/mine/duplicate"] == 2
    assert metrics["ppo/episodes"] == 16
    assert metrics["ppo/prompts_too_long"] == (3 if dropped else 0)
    assert metrics["ppo/prompts_cut"] == (0 if dropped else 3)
    assert "left out of mix.sources.mine: 2 duplicate" in log
    assert ("3 prompts too long" if dropped else "3 prompts cut") in log


def test_what_is_not_used_is_told(run: Run) -> None:
    """Nano's number of prompts holds for any file, too."""
    rows = [{**r, "completions": ["It is.", "No."], "ranks": [0, 1]} for r in prompts("train", 20)]
    held_out = [
        {**r, "completions": ["It is.", "No."], "ranks": [0, 1]}
        for s in SPLITS[1:]
        for r in prompts(s, 4)
    ]
    metrics, log = run(
        [*rows, *held_out],
        *(
            "task=reward",
            "reward.init.policy=none",
            "reward.completions=speakers",
            "reward.prompts=12",
        ),
    )
    assert metrics["reward/prompts"] == 12
    assert "reward.prompts=12 of 20 records (comparison) for training are used" in log
