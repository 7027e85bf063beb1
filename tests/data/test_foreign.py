"""Answers to other prompts lose."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_lightning.data.foreign import WithForeign
from rlhf_lightning.data.records import pairs_of


def ranked(i: int) -> dict[str, Any]:
    prompt = [{"role": "user", "content": f"p{i}"}]
    return {"prompt": prompt, "completions": [f"bad {i}", f"good {i}"], "ranks": [3, 1]}


def paired(i: int) -> dict[str, Any]:
    record = {k: v for k, v in ranked(i).items() if k != "ranks"}
    return record | {"pairs": [[1, 0]]}


@pytest.mark.parametrize("make", [ranked, paired])
def test_the_best_of_others_loses_against_each_own_and_own_pairs_stay(make: Any) -> None:
    records = [make(i) for i in range(20)]
    found = WithForeign(records, 2, seed=3)
    assert len(found) == 20 and list(found) == [found[i] for i in range(20)] == found[:]
    for i, record in enumerate(found):
        assert record["completions"][:2] == records[i]["completions"]
        foreign = record["completions"][2:]
        assert len(foreign) == 2 and all(text.startswith("good ") for text in foreign)
        assert f"good {i}" not in foreign
        pairs, _ = pairs_of(record)
        assert sorted(pairs) == [(0, 2), (0, 3), (1, 0), (1, 2), (1, 3)]
    assert found[-1] == found[19]
    assert list(found) == list(WithForeign(records, 2, seed=3))
    assert list(found) != list(WithForeign(records, 2, seed=4))


def test_an_answer_to_the_same_prompt_is_not_foreign() -> None:
    twice = [ranked(1), ranked(2) | {"prompt": ranked(1)["prompt"]}, ranked(3)]
    found = WithForeign(twice, 2, seed=0)
    assert found[0]["completions"] == ["bad 1", "good 1", "good 3"]
    assert found[1]["completions"] == ["bad 2", "good 2", "good 3"]
    assert found[2]["completions"][2:] in (["good 1", "good 2"], ["good 2", "good 1"])


def test_a_completion_is_never_set_against_itself_and_one_record_has_no_others() -> None:
    same = [ranked(1), ranked(1) | {"prompt": ranked(2)["prompt"]}]
    assert [r["completions"] for r in WithForeign(same, 1, seed=0)] == [["bad 1", "good 1"]] * 2
    assert WithForeign([ranked(1)], 3, seed=0)[0] == ranked(1)
