"""Which settings make another run of which stage."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from rlhf_lightning import compose
from rlhf_lightning.config import STAGES, RootConfig
from rlhf_lightning.plan import Planner, StagePlan
from rlhf_lightning.runs import run_hash

STOPPING = [
    "+callbacks.early._target_=lightning.pytorch.callbacks.EarlyStopping",
    "+callbacks.early.monitor=sft/val/loss",
]


@cache  # a tree takes most of a second
def root(*overrides: str) -> RootConfig:
    return compose.check(compose.compose(overrides))


def hashes(*overrides: str) -> dict[str, str]:
    plans = Planner(root(*overrides), {}).pipeline()
    return {plan.label: run_hash(plan.identity) for plan in plans}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert list(before) == list(after)
    return {stage for stage in before if before[stage] != after[stage]}


def test_a_callback_may_end_a_training_early_so_it_counts() -> None:
    stopping = Planner(root(*STOPPING), {}).pipeline()
    assert {plan.task for plan in stopping if "callbacks" in plan.identity} == {*STAGES}
    off = Planner(root("+callbacks.early=null"), {}).pipeline()
    assert {plan.label: run_hash(plan.identity) for plan in off} == hashes()


def test_what_came_later_changes_no_hash_at_its_default(tmp_path: Path) -> None:
    """Runs from before a setting are found again: the identity names it only where it is set."""
    (tmp_path / "a.jsonl").write_text('{"prompt": "Hi", "chosen": "Yes.", "rejected": "No."}\n')
    mine = ["mix=files", f"mix.sources.mine.path={tmp_path}/a.jsonl", "reward_source=model"]
    mine += ["reward_source.parts.model.path=organisation/name"]

    def identity(*overrides: str) -> tuple[dict, dict]:
        found = Planner(root(*mine, *overrides), {}).ppo().identity
        return found["mix"]["sources"]["mine"], found["reward_source"]["model"]

    source, part = identity()
    assert not {"keep_repeats", "split"} & set(source)
    assert not {"reads", "chat_template"} & set(part)
    source, part = identity(
        "mix.sources.mine.keep_repeats=true",
        "mix.sources.mine.split=train",
        "reward_source.parts.model.reads=pair",
    )
    assert source["keep_repeats"] is True and source["split"] == "train"
    assert part["reads"] == "pair"
    limit = "ppo.stop_at_kl=9"
    windows = [
        Planner(root(limit, f"ppo.stop_at_kl_window={n}"), {}).ppo().identity for n in (1, 2)
    ]
    assert "stop_at_kl_window" not in windows[0]["ppo"]
    assert windows[1]["ppo"]["stop_at_kl_window"] == 2


def test_where_a_local_dataset_lies_does_not_count(tmp_path: Path) -> None:
    names = set()
    for place in ("here", "there"):
        (tmp_path / place / "owls").mkdir(parents=True)
        given = ["mix=files", f"mix.sources.mine.hub={tmp_path}/{place}/owls"]
        identity = Planner(root(*given), {}).ppo().identity
        names.add(identity["mix"]["sources"]["mine"]["hub"])
    assert names == {"owls"}


def test_a_prompts_length_counts_where_prompts_are_chosen_by_it() -> None:
    shorter = "ppo.max_prompt_tokens=100"
    plans = Planner(root(), {}).pipeline()
    assert {p.task for p in plans if "max_prompt_tokens" in p.identity} == {"reward", "evaluate"}
    own = "reward.completions=speakers"
    assert changed(hashes(own), hashes(own, shorter)) == {"ppo", "evaluate"}


def test_a_reward_model_of_the_models_own_size_needs_no_runs_of_its_own(tmp_path: Path) -> None:
    # asked for alone, the reward model starts from the run that a pipeline makes
    same, other = (
        Planner(root(f"model@reward.model={size}"), {}, tmp_path).reward().parents["init"]
        for size in ("nano", "small")
    )
    assert isinstance(same, StagePlan) and same.path == tmp_path / "round-1/sft"
    assert isinstance(other, StagePlan) and other.path == tmp_path / "round-1/sft-small"
