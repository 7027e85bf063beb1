"""Ranking of sampled completions."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_lightning.config import ModelConfig, RewardConfig, RewardPartConfig
from rlhf_lightning.data.prompts import Prompt
from rlhf_lightning.errors import RunFailed, UserError
from rlhf_lightning.tasks.collect import _loaded_as, _ranked, _ranked_in_shares, _ranker
from rlhf_lightning.tasks.job import Job
from tests.strategies.ranks import in_ranks

PROMPT = Prompt(3, [7, 8], {"prompt": [{"role": "user", "content": "Hi"}], "meta": {"best": 5}})


def length(prompt: str, response: str) -> float:
    return len(response)


def near(prompt: str, response: str, *, record: dict[str, Any]) -> float:
    assert prompt == "decoded"
    return -abs(len(response) - record["meta"]["best"])


def divides_by_its_length(prompt: str, response: str) -> float:
    return math.nan if not response else 1 / len(response)


def test_a_score_that_is_no_number_ranks_nothing() -> None:
    """Sorting around NaN put it first, and the others in any order."""
    of = job(mine=part("divides_by_its_length", 1.0))
    assert ranks(of, ["a", "bb"]) == [0, 1]
    with pytest.raises(RunFailed, match=r"^reward.rank_by: prompt 3: the score is nan$"):
        ranks(of, ["a", "", "bb"])


@pytest.mark.parametrize(("size", "start"), [(None, 2**24), (450, 37283 * 450), (2**24, 2**24)])
def test_a_later_round_begins_a_pass_over_a_finite_mix(size: int | None, start: int) -> None:
    """37283 passes of 450 are the first that reach 2²⁴."""
    given: Any = SimpleNamespace(round=2, mixture=SimpleNamespace(size=lambda *_: size))
    assert Job.round_start(given, "prompt") == start
    given.round = 1
    assert Job.round_start(given, "prompt") == 0


def job(**parts: RewardPartConfig) -> Any:
    mixture = SimpleNamespace(rank=lambda record, texts, *, split, index: [index] * len(texts))
    root = SimpleNamespace(reward=RewardConfig(rank_by=parts))
    return SimpleNamespace(root=root, mixture=mixture)


def part(name: str, weight: float) -> RewardPartConfig:
    return RewardPartConfig(target=f"tests.tasks.test_collect.{name}", weight=weight)


def ranks(of: Any, texts: list[str]) -> list[int]:
    tokenizer: Any = SimpleNamespace(decode=lambda ids: "decoded")
    return _ranked(PROMPT, texts, _ranker(of, tokenizer, "train"))["ranks"]


def test_functions_rank_by_their_weighted_sum_and_equal_scores_tie() -> None:
    """2·near − length: lengths 5, 7, 3, 5 give 0 − 5, −4 − 7, −4 − 3, 0 − 5 = −5, −11, −7, −5."""
    found = ranks(
        job(a=part("near", 2.0), b=part("length", -1.0)), ["fives", "sevenxx", "thr", "sivef"]
    )
    assert found == [0, 2, 1, 0]


def test_each_process_ranks_its_share_and_all_have_every_record(tmp_path: Path) -> None:
    """One process ranked alone, and all others waited for it."""

    def work(_folder: Path) -> dict[str, Any]:
        judged: list[int] = []

        def rank(prompt: Prompt, texts: list[str]) -> list[int]:
            judged.append(prompt.index)
            return [prompt.index] * len(texts)

        spoken = ((Prompt(i, [7], {"prompt": []}), [f"{i}a", f"{i}b"]) for i in range(70))
        records = list(_ranked_in_shares(spoken, rank))
        return {"judged": judged, "records": [(*r["completions"], *r["ranks"]) for r in records]}

    ranks_of = in_ranks(work, tmp_path)
    assert ranks_of[0]["records"] == ranks_of[1]["records"]
    assert ranks_of[0]["records"] == [(f"{i}a", f"{i}b", i, i) for i in range(70)]
    assert sorted(ranks_of[0]["judged"] + ranks_of[1]["judged"]) == list(range(70))
    assert len(ranks_of[0]["judged"]) == 35


def test_without_functions_the_sources_labelers_rank() -> None:
    assert ranks(job(), ["a", "b", "a"]) == [3, 3, 3]


def test_a_mix_without_labelers_is_refused_where_no_function_ranks() -> None:
    nobody = job()
    nobody.mixture.rank = lambda *args, **kwargs: None
    with pytest.raises(UserError, match=r"reward\.completions must be speakers"):
        ranks(nobody, ["a", "b"])


def test_what_ranks_is_a_function_and_ranks_sampled_completions() -> None:
    with pytest.raises(
        UserError, match=r"reward\.rank_by\.a\.kind must be function, got 'learned'"
    ):
        RewardConfig(rank_by={"a": RewardPartConfig(kind="learned")})
    with pytest.raises(UserError, match=r"reward\.rank_by must be left out where .* speakers"):
        RewardConfig(completions="speakers", rank_by={"a": part("length", 1.0)})


def test_the_policy_speaks_in_the_precision_that_it_was_trained_in() -> None:
    """job.root.model is the reward model's."""
    reward = ModelConfig(name="other", path="x", dtype="bfloat16", context_length=512)
    root = SimpleNamespace(
        model=reward,
        ppo=SimpleNamespace(max_prompt_tokens=30),
        reward=SimpleNamespace(max_response_tokens=12),
    )
    own = {"config": {"model": {"dtype": "float32", "attention": "eager", "context_length": 64}}}
    trained: Any = SimpleNamespace(root=root, parents={"policy": SimpleNamespace(manifest=own)})
    found = _loaded_as(trained)
    assert (found.dtype, found.attention, found.context_length) == ("float32", "eager", 42)
    foreign: Any = SimpleNamespace(root=root, parents={"policy": SimpleNamespace(manifest=None)})
    assert _loaded_as(foreign).dtype == "bfloat16"  # of other making: as the command says
