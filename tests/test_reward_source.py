"""What the score comes from: the runs that it needs, and whole runs without a reward stage."""

from __future__ import annotations

import json
import os
import shutil
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning import compose
from rlhf_lightning import plan as plan_module
from rlhf_lightning.config import RootConfig
from rlhf_lightning.config.reward_source import role_of
from rlhf_lightning.errors import RunFailed, UserError
from rlhf_lightning.model_identity import _tree
from rlhf_lightning.plan import Planner, StagePlan
from rlhf_lightning.runs import Artifact, run_hash
from rlhf_lightning.tasks import reward as reward_task
from rlhf_lightning.tasks.fit import fit
from tests.harness import json_lines, only, rlhf_here
from tests.rewards.test_external import llama, saved, their_tokenizer
from tests.test_config import complaint

MINE = "tests.rewards.mine"
WORDS = ["reward_source=function", f"reward_source.parts.function.target={MINE}.words"]


@cache  # a tree takes most of a second, and several tests ask for the same ones
def root(*overrides: str) -> RootConfig:
    return compose.check(compose.compose(overrides))


def planner(*overrides: str) -> Planner:
    return Planner(root(*overrides), {})


def plan_of(parent: StagePlan | Artifact) -> StagePlan:
    assert isinstance(parent, StagePlan)
    return parent


# ---- the settings


@pytest.mark.parametrize("name", ["learned", "ensemble", "function", "model", "weighted"])
def test_every_preset_passes_the_check(name: str) -> None:
    needs = {
        "function": [f"reward_source.parts.function.target={MINE}.words"],
        "weighted": [f"reward_source.parts.function.target={MINE}.words"],
        "model": ["reward_source.parts.model.path=some/hub_id"],
    }
    found = root(f"reward_source={name}", *needs.get(name, []))
    assert (found.reward_source.learned is not None) == (name not in ("function", "model"))
    assert compose.defaults_diff(found) != {} or name == "learned"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["reward_source=function"], "reward_source.parts.function.target must be given"),
        (["reward_source=model"], "reward_source.parts.model.path must be given"),
        ([*WORDS, "reward_source.parts.function.path=x"], "reward_source.parts.function.path must be left alone where kind is function, got 'x'"),
        ([*WORDS, "reward_source.parts.function.members=2"], "reward_source.parts.function.members must be left alone"),
        ([*WORDS, "reward_source.parts.function.args.eech=2"], f"reward_source.parts.function.args must be parameters of {MINE}.words"),
        ([WORDS[0], "reward_source.parts.function.target=no.such"], "reward_source.parts.function.target must be the import path"),
        (["evaluate.known.mine.target=no.such"], "evaluate.known.mine.target must be the import path"),
        (["evaluate.known.mine.kind=learned"], "evaluate.known.mine.kind must be one of function, model, got 'learned'"),
        ([f"evaluate.known.mine.target={MINE}.words", "evaluate.known.mine.weight=2"], "evaluate.known.mine.weight must be 1"),
        (["reward_source.parts.learned.kind=lerned"], "reward_source.parts.learned.kind must be one of learned, function, model"),
        (["reward_source.parts.learned.weight=nan"], "reward_source.parts.learned.weight must be a number other than 0"),
        (["reward_source.parts.learned.weight=0"], "reward_source.parts.learned.weight must be a number other than 0"),
        (["reward_source.parts.learned.members=0"], "reward_source.parts.learned.members must be >= 1, got 0"),
        (["reward_source.parts.learned.combine=best"], "reward_source.parts.learned.combine must be one of mean, worst, uncertainty, got 'best'"),
        (["reward_source.parts.learned.combine=worst"], "reward_source.parts.learned.combine must be left alone where members is 1, got 'worst'"),
        (["reward_source.parts.learned.members=3", "reward_source.parts.learned.coef=2"], "reward_source.parts.learned.coef must be left alone unless combine is uncertainty, got 2.0"),
        (["reward_source.parts.learned.combne=mean"], "did you mean reward_source.parts.learned.combine?"),
        (["reward_source.parts.learned.members=two"], "reward_source.parts.learned.members must be an integer, got 'two'"),
        (["reward_source.parts.other.kind=learned"], "reward_source.parts must have at most one part of kind learned"),
        (["reward_source.parts.learned=null"], "reward_source.parts.learned must be a group of settings, got None"),
        (["reward_source=ensemble", "task=reward", "reward_source.member=4"], "reward_source.member must be in 0..3"),
        (["reward_source=ensemble", "reward_source.member=1"], "reward_source.member must be 0 but in task=reward, got 1"),
        (["reward_source=ensemble", "ppo.init.reward=x"], "ppo.init.reward must be null where reward_source has an ensemble of them, got 'x'"),
        (["reward_source=model", "reward_source.parts.model.path=a/b", "reward_source.parts.model.reads=book"], "reward_source.parts.model.reads must be one of chat, pair, got 'book'"),
        (["reward_source=model", "reward_source.parts.model.path=a/b", "reward_source.parts.model.reads=pair", "reward_source.parts.model.chat_template=x"], "reward_source.parts.model.chat_template must be null where reads is pair, got 'x'"),
        ([*WORDS, "evaluate.reward=x"], "evaluate.reward must be null where reward_source has no learned part, got 'x'"),
    ],
)  # fmt: skip
def test_bad_settings_get_one_line_with_the_key(overrides: list[str], expected: str) -> None:
    assert expected in complaint(*overrides)


def test_a_saved_config_with_parts_loads_as_the_same_tree(tmp_path: Path) -> None:
    given = root(
        *WORDS,
        "reward_source.parts.function.args.each=2",
        "reward_source.parts.b.kind=model",
        "reward_source.parts.b.path=x/y",
    )
    (tmp_path / "config.yaml").write_text(compose.saved_config(given))
    assert compose.load_saved(tmp_path / "config.yaml") == given


# ---- the plan


def test_an_ensemble_has_a_reward_stage_a_member_and_the_first_is_the_one_without_an_ensemble() -> (
    None
):
    alone, members = planner().pipeline(), planner("reward_source=ensemble").pipeline()
    assert [plan.label for plan in members] == [
        "pretrain", "sft", "reward", "reward-2", "reward-3", "reward-4", "ppo", "evaluate",
    ]  # fmt: skip
    by_label = {plan.label: plan for plan in members}
    (reward,) = (plan for plan in alone if plan.task == "reward")
    assert run_hash(by_label["reward"].identity) == run_hash(reward.identity)
    assert "member" not in by_label["reward"].identity
    assert by_label["reward-3"].identity["member"] == 2
    assert len({run_hash(plan.identity) for plan in members}) == len(members)
    assert list(by_label["ppo"].parents) == ["policy", *map(role_of, range(4))]
    third = by_label["reward-3"]
    # it learns from the first one's comparisons, and begins where the first one began
    assert third.parents["comparisons"] is by_label["reward"] and "policy" not in third.parents
    assert third.parents["init"] is by_label["reward"].parents["init"]
    assert third.root.reward_source.member == 2


def test_the_members_of_a_later_round_go_on_from_their_own() -> None:
    plans = planner("reward_source=ensemble", "pipeline.rounds=2").pipeline()
    by_label = {plan.label: plan for plan in plans}
    second = by_label["reward-2 of round 2"]
    assert second.parents["init"] is by_label["reward-2"]
    assert second.parents["comparisons"] is by_label["reward of round 2"]
    assert set(by_label["evaluate"].parents) >= {"reward", "reward.3"}
    assert by_label["evaluate"].parents["reward.1"] is second


def test_one_member_is_named_for_a_stage_of_its_own() -> None:
    alone = planner("reward_source=ensemble", "task=reward", "reward_source.member=2").stage(
        "reward"
    )
    inside = {p.label: p for p in planner("reward_source=ensemble").pipeline()}["reward-3"]
    assert run_hash(alone.identity) == run_hash(inside.identity)


def test_stages_of_an_ensemble_lie_side_by_side_where_the_user_wants_them(tmp_path: Path) -> None:
    found = Planner(root("reward_source=ensemble"), {}, tmp_path).pipeline()
    places = {plan.path.relative_to(tmp_path).as_posix() for plan in found}
    assert {"round-1/reward", "round-1/reward-2", "round-1/reward-4"} <= places


def test_a_score_without_a_learned_part_needs_no_reward_stage() -> None:
    plans = planner(*WORDS).pipeline()
    assert [plan.label for plan in plans] == ["pretrain", "sft", "ppo", "evaluate"]
    assert list(plans[2].parents) == ["policy"]


def test_the_default_source_leaves_identities_as_they_are_and_another_changes_ppo_alone() -> None:
    default = {p.task: run_hash(p.identity) for p in planner().pipeline()}
    again = {p.task: run_hash(p.identity) for p in planner("reward_source=learned").pipeline()}
    assert again == default
    assert not any("reward_source" in p.identity for p in planner().pipeline())
    weighted = planner("reward_source.parts.learned.weight=2").pipeline()
    changed = {p.task for p in weighted if run_hash(p.identity) != default[p.task]}
    assert changed == {"ppo", "evaluate"}
    known = planner(f"evaluate.known.mine.target={MINE}.words").pipeline()
    assert {p.task for p in known if run_hash(p.identity) != default[p.task]} == {"evaluate"}


def test_files_and_folders_of_parts_count_by_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hash_of(*overrides: str) -> str:
        return run_hash(planner(*overrides).ppo().identity)

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lexicon.txt").write_text("good\t1.9\n")
    target = "rlhf_lightning.rewards.known.LexiconSentiment"
    function = [WORDS[0], f"reward_source.parts.function.target={target}"]
    path = "reward_source.parts.function.args.path"
    first, moved = (hash_of(*function, f"{path}={tmp_path / n}/lexicon.txt") for n in ("a", "b"))
    assert first == moved
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hash_of(*function, f"{path}='~/a/lexicon.txt'") == first
    (tmp_path / "b" / "lexicon.txt").write_text("good\t2.0\n")
    assert hash_of(*function, f"{path}={tmp_path / 'b'}/lexicon.txt") != first
    places = (
        f"reward_source.parts.function.args.places=[{tmp_path}/a,{{of: {tmp_path}/b/lexicon.txt}}]"
    )
    open_to_all = [WORDS[0], f"reward_source.parts.function.target={MINE}.Anything", places]
    several = hash_of(*open_to_all)
    (tmp_path / "a" / "lexicon.txt").write_text("good\t2.1\n")
    _tree.cache_clear()
    by_folder = hash_of(*open_to_all)
    assert by_folder != several
    (tmp_path / "b" / "lexicon.txt").write_text("good\t2.2\n")
    assert hash_of(*open_to_all) != by_folder

    folder = saved(tmp_path / "model", llama(), their_tokenizer())
    model = ["reward_source=model", f"reward_source.parts.model.path={folder}"]
    before = hash_of(*model)
    assert hash_of(*model, "reward_source.parts.model.batch_size=7") == before
    assert hash_of(*model, "reward_source.parts.model.max_length=64") != before
    mine = tmp_path / "mine.jinja"
    mine.write_text("{{ messages }}")
    template = f"reward_source.parts.model.chat_template={mine}"
    hashes = {
        before,
        hash_of(*model, template),
        hash_of(*model, "reward_source.parts.model.reads=pair"),
    }
    mine.write_text("{{ messages }}.")
    hashes.add(hash_of(*model, template))
    assert len(hashes) == 4
    with pytest.raises(UserError, match=r"model\.chat_template must be a file, got '/nowhere'$"):
        hash_of(*model, "reward_source.parts.model.chat_template=/nowhere")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    _tree.cache_clear()
    assert hash_of(*model) not in hashes
    (folder / "chat_template.jinja").unlink()
    _tree.cache_clear()
    with pytest.raises(UserError, match=r"model\.path must have a tokenizer with a chat template"):
        hash_of(*model)
    hash_of(*model, template)
    hash_of(*model, "reward_source.parts.model.reads=pair")


def test_a_folder_that_is_no_reward_model_is_told_with_the_plan(tmp_path: Path) -> None:
    two = saved(tmp_path / "two", llama(labels=2), their_tokenizer())
    key = "reward_source.parts.model.path"
    with pytest.raises(UserError, match=f"^{key} must be a model with one label, got .* with 2$"):
        planner("reward_source=model", f"{key}={two}").pipeline()
    with pytest.raises(UserError, match=f"^{key} must be a hub id or a folder with a model"):
        planner("reward_source=model", f"{key}={tmp_path}/nowhere").pipeline()


def test_a_reward_model_of_another_size_is_held_to_its_own_context(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", llama(), their_tokenizer())  # context 128
    given = [f"ppo.init.reward={folder}", "model@reward.model=small", "ppo.max_prompt_tokens=64"]
    fits = planner(*given, "reward.model.context_length=128", "model.context_length=200").ppo()
    assert isinstance(fits.parents["reward"], Artifact)  # the policy's 200 are not asked of it
    speaks = [f"generate.init.reward={folder}", *given[1:], "reward.model.context_length=128"]
    planner("task=generate", "prompt=Hi", *speaks, "model.context_length=200").generate()
    with pytest.raises(
        UserError,
        match=r"^reward.model.context_length must be <= 128, the context of ppo.init.reward=.*, got 256$",
    ):
        planner(*given).ppo()


def test_how_a_named_reward_model_is_loaded_counts(tmp_path: Path) -> None:
    folder = saved(tmp_path, llama(), their_tokenizer())
    given = [f"ppo.init.reward={folder}", "model@reward.model=small", "ppo.max_prompt_tokens=64"]
    given += ["reward.model.context_length=128", "model.context_length=200"]
    hashes = {
        run_hash(planner(*given, f"reward.model.dtype={dtype}").ppo().identity)
        for dtype in ("float32", "bfloat16")
    }
    assert len(hashes) == 2


def test_a_file_of_the_function_that_ranks_counts_by_its_content(tmp_path: Path) -> None:
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("good\t1.9\n")
    ranked = ["reward.rank_by.mine.target=rlhf_lightning.rewards.known.LexiconSentiment"]
    ranked += [f"reward.rank_by.mine.args.path={lexicon}"]
    hashes = []
    for value in ("1.9", "2.0"):
        lexicon.write_text(f"good\t{value}\n")
        hashes.append(run_hash(planner(*ranked).reward().identity))
    assert hashes[0] != hashes[1]


def test_a_chain_of_rounds_is_planned_once_and_a_given_model_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path, llama(), their_tokenizer())
    read, planned = [], []
    find, plan = plan_module.resolve_artifact, Planner._plan
    monkeypatch.setattr(
        plan_module, "resolve_artifact", lambda path, **k: read.append(path) or find(path, **k)
    )
    monkeypatch.setattr(
        Planner, "_plan", lambda self, *a, **k: planned.append(a) or plan(self, *a, **k)
    )
    short = ["model.context_length=128", "ppo.max_prompt_tokens=64", "sft.max_length=128"]
    many = ["pipeline.rounds=4", "reward_source=ensemble", f"sft.init.policy={folder}"]
    stages = planner(*many, *short).pipeline()
    assert len(read) == 1
    assert len(planned) < 2 * len(stages)


# ---- whole runs

SHORT = ["logger=none", "ppo.iterations=1", "ppo.epochs=1"]
"""No curves are looked at here, and one iteration has them all."""


@pytest.fixture(scope="module")
def own_outputs(tmp_path_factory: pytest.TempPathFactory, finished_pipeline: Path) -> Path:
    """The finished pipeline's `outputs/`, in a copy that this module's runs share."""
    copy = tmp_path_factory.mktemp("reward_source") / "outputs"
    return shutil.copytree(finished_pipeline, copy, symlinks=True)


@pytest.fixture(scope="module")
def without_reward(tmp_path_factory: pytest.TempPathFactory, own_outputs: Path) -> Path:
    """A pipeline against a function and a model of other making; SFT is shared with the session's pipeline."""
    folder = saved(tmp_path_factory.mktemp("theirs"), llama(), their_tokenizer())
    rlhf_here(
        f"outputs={own_outputs}",
        *SHORT,
        *WORDS,
        "reward_source.parts.function.args.each=0.5",
        "reward_source.parts.theirs.kind=model",
        f"reward_source.parts.theirs.path={folder}",
        f"evaluate.known.words.target={MINE}.words",
    )
    (run,) = (
        p for p in (own_outputs / "pipeline").iterdir() if not (p / "round-1/reward").exists()
    )
    return run


def test_ppo_runs_without_any_reward_stage(without_reward: Path) -> None:
    config = json.loads((without_reward / "round-1/ppo/identity.json").read_text())["identity"]
    assert list(config["parents"]) == ["policy"]
    header = (without_reward / "round-1/ppo/metrics.csv").read_text()
    for name in ("rollout/score_function", "rollout/score_theirs", "val/score_function"):
        assert name in header
    metrics = json.loads((without_reward / "round-1/ppo/metrics.json").read_text())["metrics"]
    own = {k.removeprefix("ppo/validation/"): v for k, v in metrics.items()}
    total = own["score_function"] + own["score_theirs"]
    assert own["reward_score"] == pytest.approx(total, abs=1e-5)


def test_known_scores_are_measured_for_every_model_and_row(without_reward: Path) -> None:
    metrics = json.loads((without_reward / "metrics.json").read_text())["metrics"]
    rows = json_lines(without_reward / "evaluate/samples.jsonl")
    means = {}
    for name in ("base", "sft", "ppo"):
        mine = [row for row in rows if row["model"] == name]
        assert all(row["known"]["words"] == len(row["response"].split()) for row in mine)
        means[name] = sum(row["known"]["words"] for row in mine) / len(mine)
        assert metrics[f"{name}/known/words"] == pytest.approx(means[name])
    gain = metrics["ppo/known/words_gain_vs_sft"]
    assert gain == pytest.approx(means["ppo"] - means["sft"])
    assert 0 < metrics["ppo/known/words_p_vs_sft"] <= 1
    assert "ppo/reward_gain_in_sft_sd" in metrics
    assert "reward/pairwise_accuracy" not in metrics


def test_evaluation_needs_neither_gold_nor_a_learned_reward(
    tmp_path: Path, finished_pipeline: Path
) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What does the fox eat on day {i}?"}],
            "meta": {"references": ["The fox eats meat.", "Meat."]},
        }
        for i in range(80)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = {task: only(finished_pipeline / task) for task in ("sft", "ppo")}
    metrics = rlhf_here(
        f"outputs={tmp_path / 'outputs'}",
        "task=evaluate",
        "logger=none",
        "mix=files",
        f"mix.sources.mine.path={tmp_path / 'p.jsonl'}",
        "mix.test_fraction=0.3",
        *(f"evaluate.models.{task}={run / 'artifact'}" for task, run in runs.items()),
        f"evaluate.models.base={runs['sft'] / 'artifact'}",
        *WORDS,
        "evaluate.known.rouge.target=rlhf_lightning.rewards.known.RougeLength",
        "evaluate.known.rouge.args.target_words=4",
    )
    assert not any("gold" in name or "win_rate" in name for name in metrics)
    names = {"ppo/reward_score", "ppo/known/rouge", "ppo/known/rouge_p_vs_sft", "ppo/kl_k1"}
    assert names <= metrics.keys()
    assert -0.5 <= metrics["ppo/known/rouge"] <= 1


@pytest.mark.parametrize(
    ("key", "where"),
    [
        ("evaluate.known.mine", "evaluate.known.mine of base: the score is nan"),
        ("reward_source.parts.function", "evaluate.models.base: the score is nan"),
    ],
)
def test_a_score_that_is_no_number_ends_an_evaluation_in_one_line(
    tmp_path: Path, finished_pipeline: Path, key: str, where: str
) -> None:
    runs = {task: only(finished_pipeline / task) for task in ("sft", "ppo")}
    with pytest.raises(RunFailed, match=f"^{where}$"):
        rlhf_here(
            f"outputs={tmp_path}",
            "task=evaluate",
            "logger=none",
            *(f"evaluate.models.{task}={run / 'artifact'}" for task, run in runs.items()),
            f"evaluate.models.base={runs['sft'] / 'artifact'}",
            *WORDS,
            f"{key}.target={MINE}.no_number",
        )
    assert not list(tmp_path.glob("evaluate/*/samples.jsonl"))


def test_members_of_an_ensemble_of_adapters_begin_with_other_adapters(
    own_outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where every head begins at zero."""
    seen: list[dict[str, torch.Tensor]] = []

    def instead(job: Any, module: Any, *args: Any, **kwargs: Any) -> None:
        state = {n: p.detach().clone() for n, p in module.named_parameters() if "lora_A" in n}
        seen.append(state)
        fit(job, module, *args, **kwargs)

    monkeypatch.setattr(reward_task, "fit", instead)
    ensemble = ["reward_source=ensemble", "reward_source.parts.learned.members=2"]
    for member in (0, 1):
        rlhf_here(
            f"outputs={own_outputs}",
            "task=reward",
            *SHORT,
            *ensemble,
            f"reward_source.member={member}",
            "adapter@reward.lora=lora",
            "reward.head_scale=0",
        )
    first, second = seen
    assert first.keys() == second.keys() and first
    assert not any(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_an_ensemble_is_trained_linked_and_its_disagreement_logged(own_outputs: Path) -> None:
    before = len(list((own_outputs / "reward").iterdir()))
    rlhf_here(
        f"outputs={own_outputs}",
        *SHORT,
        "reward_source=ensemble",
        "reward_source.parts.learned.members=2",
    )
    # the first member is the pipeline's own reward model
    assert len(list((own_outputs / "reward").iterdir())) == before + 1
    (run,) = (p for p in (own_outputs / "pipeline").iterdir() if (p / "round-1/reward-2").exists())
    first, second = ((run / f"round-1/{n}") for n in ("reward", "reward-2"))
    assert (first / "data/comparisons_train.jsonl").is_file() and not (second / "data").exists()
    weights = [(r / "artifact/model.safetensors").read_bytes() for r in (first, second)]
    assert weights[0] != weights[1]
    found = [json.loads((r / "metrics.json").read_text())["metrics"] for r in (first, second)]
    assert found[0]["reward/pairs"] == found[1]["reward/pairs"]
    assert "rollout/score_learned_std_members" in (run / "round-1/ppo/metrics.csv").read_text()
    ppo = json.loads((run / "round-1/ppo/metrics.json").read_text())["metrics"]
    assert ppo["ppo/validation/score_learned_std_members"] > 0
    # the pipeline's reward metrics are the first member's
    whole = json.loads((run / "metrics.json").read_text())["metrics"]
    assert whole["reward/pairwise_accuracy"] == found[0]["reward/pairwise_accuracy"]


def test_the_value_model_of_a_reward_that_is_not_learned_says_zero(
    without_reward: Path, own_outputs: Path
) -> None:
    first = (without_reward / "round-1/ppo/metrics.csv").read_text()
    assert "ppo/explained_variance" in first
    from transformers import AutoModelForCausalLM

    from rlhf_lightning.models.loading import scorer_on

    sft = (without_reward / "round-1/sft/artifact").resolve()
    policy = AutoModelForCausalLM.from_pretrained(sft)
    value: Any = scorer_on(policy, root("experiment=debug").model)
    assert torch.equal(value.score.weight, torch.zeros_like(value.score.weight))
    theirs = dict(policy.model.named_parameters())
    assert all(torch.equal(p, theirs[n]) for n, p in value.model.named_parameters())
    assert only(own_outputs / "sft").name == sft.parent.name


def test_a_finished_run_tells_that_its_function_was_changed_since(
    tmp_path: Path,
    finished_pipeline: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Code names no run: the same command trained nothing, and said nothing."""
    file = tmp_path / "brevity_of_mine.py"
    file.write_text("def score(prompt, response):\n    return -float(len(response))\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    sft = only(finished_pipeline / "sft") / "artifact"
    command = [
        *(f"outputs={tmp_path / 'outputs'}", "task=ppo", f"ppo.init.policy={sft}", "logger=none"),
        *(WORDS[0], "reward_source.parts.function.target=brevity_of_mine.score"),
        *("ppo.iterations=1", "ppo.eval_prompts=8"),
    ]
    rlhf_here(*command)
    caplog.clear()
    rlhf_here(*command)
    assert not [r for r in caplog.records if "was changed" in r.getMessage()]
    later = time.time() + 5
    os.utime(file, (later, later))
    rlhf_here(*command)
    (told,) = (r.getMessage() for r in caplog.records if "was changed" in r.getMessage())
    assert told.startswith(f"ppo: {file} was changed after this run had finished")
