"""Bad input that only a run can see: one line with the key or file:line, and nothing left on disk.

What the config alone tells is in test_config.py, exit codes and multirun in test_entry.py.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_lightning.errors import RunFailed, UserError
from tests.harness import only, rlhf, rlhf_here, start, wait_for

LIMIT_S = 10.0
"""In which every mistake is answered."""

USER = {"role": "user", "content": "What does the fox eat?"}
GOOD = {
    "demonstration": {"messages": [USER, {"role": "assistant", "content": "Meat."}]},
    "comparison": {"prompt": [USER], "completions": ["Meat.", "Grass."], "ranks": [0, 1]},
}


def refused(tmp_path: Path, *overrides: str) -> str:
    """The line that the command answers; it leaves no trace."""
    before, begun = set(tmp_path.rglob("*")), time.monotonic()
    with pytest.raises(UserError) as caught:
        rlhf_here(f"outputs={tmp_path / 'outputs'}", *overrides)
    assert time.monotonic() - begun < LIMIT_S
    assert set(tmp_path.rglob("*")) == before
    return " ".join(str(caught.value).split())


def refused_by_command(tmp_path: Path, *overrides: str) -> str:
    """The same of a process of its own, from its start to its end: exit code 2 and one line."""
    before, begun = set(tmp_path.rglob("*")), time.monotonic()
    done = rlhf(tmp_path, *overrides)
    assert time.monotonic() - begun < LIMIT_S
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert set(tmp_path.rglob("*")) == before
    return done.stderr.removeprefix("error: ").rstrip()


def mine(tmp_path: Path, *lines: str) -> list[str]:
    """Overrides for a mix that is one JSON Lines file."""
    (tmp_path / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return ["mix=files", f"mix.sources.mine.path={tmp_path / 'rows.jsonl'}"]


def artifact(outputs: Path, task: str) -> Path:
    """Of the pipeline's own run; other tests may have added runs since."""
    runs = (outputs / task).iterdir()
    return min(runs, key=lambda run: (run / "identity.json").stat().st_mtime_ns) / "artifact"


# ---- settings


def test_a_minibatch_that_does_not_divide_the_batch(tmp_path: Path) -> None:
    line = refused(tmp_path, "ppo.minibatch_size=5")
    assert line == "ppo.minibatch_size must be a divisor of ppo.episodes_per_iteration=16, got 5"


@pytest.mark.parametrize("stage", ["ppo", "reward", "evaluate"])
def test_prompt_and_response_longer_than_the_context(tmp_path: Path, stage: str) -> None:
    line = refused(tmp_path, f"{stage}.max_response_tokens=100", "ppo.max_prompt_tokens=96")
    assert f"ppo.max_prompt_tokens + {stage}.max_response_tokens must be <= model.context" in line


def test_only_ppo_starts_from_a_reward_model(tmp_path: Path) -> None:
    line = refused_by_command(tmp_path, "task=reward", "reward.init.reward=x")
    assert line.startswith("reward.init.reward must be a known setting")


def test_a_target_of_kl_that_nobody_steers_to(tmp_path: Path) -> None:
    line = refused(tmp_path, "ppo.adaptive_kl.target=3")
    assert line == (
        "ppo.adaptive_kl.target must be left alone where ppo.adaptive_kl.enabled is false, got 3.0"
    )


def test_checkpoints_are_not_lightnings(tmp_path: Path) -> None:
    node = "+callbacks.mine._target_=lightning.pytorch.callbacks.ModelCheckpoint"
    line = refused(tmp_path, node)
    assert line.startswith("callbacks.mine._target_ must not write checkpoints: use <stage>.check")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "pretrain.optimizer.eps=-1",
            "pretrain.optimizer: torch.optim.AdamW cannot be built from ",
        ),
        (
            "+callbacks.mine._target_=lightning.pytorch.callbacks.EarlyStopping",
            "callbacks.mine: lightning.pytorch.callbacks.EarlyStopping cannot be built from []: ",
        ),
    ],
)
def test_what_a_class_does_not_take_is_told_before_any_work(
    tmp_path: Path, override: str, expected: str
) -> None:
    line = refused(tmp_path, "task=pretrain", override)
    assert line.startswith(expected) and ("epsilon" in line or "monitor" in line)


@pytest.mark.parametrize("key", ["run_dir", "outputs"])
def test_a_directory_that_cannot_be_written(tmp_path: Path, key: str) -> None:
    (tmp_path / "file").write_text("")
    line = refused(tmp_path, f"{key}={tmp_path / 'file' / 'there'}")
    assert line.startswith(f"{key} must be a place that can be written, got '{tmp_path}/file/there")


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    line = refused(tmp_path, "model=hf", f"model.path={tmp_path / 'nowhere'}")
    assert line.startswith("model.path must be a hub id or a folder with a model, got ")


def test_a_folder_without_a_model_is_no_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "mine"
    (run / "artifact").mkdir(parents=True)
    (run / "artifact" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    line = refused(tmp_path / "out", "model=hf", "model.path=mine")
    assert line.endswith("'mine', which has no config.json; did you mean 'mine/artifact'?")


# ---- artifacts


@pytest.mark.parametrize(
    ("task", "key"),
    [
        ("sft", "sft.init.policy"),
        ("reward", "reward.init.policy"),
        ("ppo", "ppo.init.policy"),
        ("ppo", "ppo.init.reward"),
        ("evaluate", "evaluate.models.other"),
        ("evaluate", "evaluate.reward"),
        ("pipeline", "ppo.init.reward"),
    ],
)
def test_a_missing_artifact(tmp_path: Path, task: str, key: str) -> None:
    line = refused(tmp_path, f"task={task}", f"{key}={tmp_path / 'nowhere'}")
    assert line.startswith(f"{key} must be a run, an artifact or a model folder, got ")
    assert line.endswith("which does not exist")


def test_an_artifact_of_the_wrong_stage(tmp_path: Path, finished_pipeline: Path) -> None:
    sft, reward = artifact(finished_pipeline, "sft"), artifact(finished_pipeline, "reward")
    line = refused(tmp_path, "task=ppo", f"ppo.init.policy={reward}")
    assert line.startswith("ppo.init.policy must be ") and line.endswith("of reward")
    line = refused(tmp_path, f"ppo.init.reward={sft.parent}")
    assert line.startswith("ppo.init.reward must be ") and line.endswith("of sft")


@pytest.mark.parametrize("change", ["changed", "removed", "added"])
def test_a_tampered_artifact(tmp_path: Path, finished_pipeline: Path, change: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact(finished_pipeline, "sft"), copy)
    file = copy / {"added": "more.safetensors"}.get(change, "model.safetensors")
    if change == "removed":
        file.unlink()
    else:
        file.write_bytes(b"\0" * 100)
    line = refused(tmp_path, "task=ppo", f"ppo.init.policy={copy}")
    assert line.startswith("ppo.init.policy must be an artifact as it was written, got ")
    assert file.name in line


def test_a_parent_that_was_tampered_with_stops_a_pipeline_before_it_begins(
    tmp_path: Path, finished_pipeline: Path
) -> None:
    outputs = tmp_path / "outputs"
    for task in ("pretrain", "sft"):
        shutil.copytree(finished_pipeline / task, outputs / task)
    (artifact(outputs, "sft") / "chat_template.jinja").write_text("")
    line = refused(tmp_path)
    assert line.startswith("reward.init.policy must be an artifact as it was written, got ")
    assert "chat_template.jinja was changed" in line


def test_an_artifact_whose_context_is_shorter(tmp_path: Path, finished_pipeline: Path) -> None:
    sft = artifact(finished_pipeline, "sft")
    line = refused(tmp_path, "task=ppo", f"ppo.init.policy={sft}", "model.context_length=1000")
    assert line.startswith("model.context_length must be <= ")
    assert line.endswith(f"the context of ppo.init.policy={sft}, got 1000")


def test_a_model_that_does_not_see_as_far_as_its_documents_are_long(tmp_path: Path) -> None:
    architecture = ["model.architecture.model_type=mistral", "model.architecture.sliding_window=16"]
    with pytest.raises(UserError, match=r"^pretrain\.max_length must be <= 16, .* got 144$"):
        rlhf_here(f"outputs={tmp_path}", "task=pretrain", *architecture)
    assert not list(tmp_path.rglob("*.json"))


def test_ppos_pretraining_text_is_held_to_the_same(
    tmp_path: Path, finished_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhf_lightning.models import packing

    monkeypatch.setattr(packing, "attention_window", lambda config: 16)
    parents = given(finished_pipeline, artifact(finished_pipeline, "reward"))
    with pytest.raises(
        UserError, match=r"^ppo\.max_prompt_tokens \+ ppo\.max_response_tokens must be <= 16"
    ):
        rlhf_here(f"outputs={tmp_path}", "task=ppo", "ppo.ptx.coef=1", *parents)


@pytest.mark.parametrize("how", ["other", "none"])
def test_a_tokenizer_that_does_not_match(tmp_path: Path, finished_pipeline: Path, how: str) -> None:
    sft, reward = artifact(finished_pipeline, "sft"), tmp_path / "reward"
    shutil.copytree(artifact(finished_pipeline, "reward"), reward)
    (reward / "manifest.json").unlink()  # a Hugging Face folder of other making
    if how == "other":
        (reward / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    else:
        (reward / "tokenizer.json").unlink()
    line = refused(tmp_path, "task=ppo", f"ppo.init.policy={sft}", f"ppo.init.reward={reward}")
    assert str(reward) in line
    if how == "other":
        assert line.startswith("ppo.init.reward must have the tokenizer of the policy ")
    else:
        assert line.endswith("must hold a tokenizer, got no tokenizer.json")


def other_tokens(outputs: Path, task: str, folder: Path) -> Path:
    """A model of other making whose tokens are not those of our runs."""
    shutil.copytree(artifact(outputs, task), folder)
    (folder / "manifest.json").unlink()
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    return folder


def given(outputs: Path, reward: Path) -> list[str]:
    return [
        f"ppo.init.policy={artifact(outputs, 'sft')}",
        f"ppo.init.reward={reward}",
    ]


@pytest.mark.parametrize("task", ["ppo", "pipeline"])
def test_a_reward_model_of_other_tokens_is_found_before_a_pipeline_begins(
    tmp_path: Path, finished_pipeline: Path, task: str
) -> None:
    other = other_tokens(finished_pipeline, "reward", tmp_path / "other")
    outputs = tmp_path / "outputs"
    for name in ("pretrain", "sft", "reward"):
        shutil.copytree(finished_pipeline / name, outputs / name)
    # the policy is the finished SFT run of the same command line
    line = refused(tmp_path, f"task={task}", f"ppo.init.reward={other}")
    assert line.startswith(f"ppo.init.reward must have the tokenizer of the policy '{outputs}/sft/")
    assert line.endswith(f"got '{other}' with another one")


def test_of_two_models_the_one_that_was_named_is_blamed(
    tmp_path: Path, finished_pipeline: Path
) -> None:
    other = other_tokens(finished_pipeline, "sft", tmp_path / "other")
    outputs = tmp_path / "outputs"
    for name in ("pretrain", "sft", "reward"):
        shutil.copytree(finished_pipeline / name, outputs / name)
    line = refused(tmp_path, "task=ppo", f"ppo.init.policy={other}")
    assert line.startswith("ppo.init.policy must have the tokenizer of the reward model ")
    line = refused(tmp_path, "task=evaluate", f"evaluate.models={{sft: null, mine: {other}}}")
    assert line.startswith("evaluate.models.mine must have the tokenizer of base ")


@pytest.mark.parametrize(("key", "blamed"), [("evaluate", "evaluate"), ("ppo.init", "ppo.init")])
def test_an_evaluation_names_the_key_its_reward_model_came_from(
    tmp_path: Path, finished_pipeline: Path, key: str, blamed: str
) -> None:
    other = other_tokens(finished_pipeline, "reward", tmp_path / "other")
    sft = artifact(finished_pipeline, "sft")
    models = f"evaluate.models={{sft: {sft}}}"
    line = refused(
        tmp_path, "task=evaluate", models, "evaluate.reference=sft", f"{key}.reward={other}"
    )
    assert line.startswith(f"{blamed}.reward must have the tokenizer of sft '{sft}', got '{other}'")


def test_a_run_that_is_not_there_yet_has_the_tokens_it_will_start_from(
    tmp_path: Path, finished_pipeline: Path
) -> None:
    # SFT, whose weights are still to come, keeps the tokenizer of what it starts from
    other = other_tokens(finished_pipeline, "reward", tmp_path / "other")
    start = artifact(finished_pipeline, "pretrain")
    line = refused(tmp_path, f"sft.init.policy={start}", f"ppo.init.reward={other}")
    assert line.startswith(f"ppo.init.reward must have the tokenizer of the policy '{start}'")
    # also where that is a folder of other making
    raw = other_tokens(finished_pipeline, "pretrain", tmp_path / "raw")
    (raw / "chat_template.jinja").unlink()
    line = refused(tmp_path, f"sft.init.policy={raw}", f"ppo.init.reward={other}")
    assert line.startswith(f"ppo.init.reward must have the tokenizer of the policy '{raw}'")


# ---- data


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("demonstration", '{"messages": [', "must be one JSON object, got b'{\"messages\": ['"),
        ("demonstration", "[1, 2]", "must be a JSON object, got [1, 2]"),
        (
            "demonstration",
            json.dumps({"messages": [USER | {"role": "judge"}, USER | {"role": "assistant"}]}),
            "messages[0].role must be one of system, user, assistant, got 'judge'",
        ),
        (
            "comparison",
            json.dumps(GOOD["comparison"] | {"completions": ["Meat."], "ranks": [0]}),
            "a comparison needs at least 2 completions, got 1",
        ),
    ],
)
def test_a_row_that_breaks_the_rules(tmp_path: Path, kind: str, row: str, expected: str) -> None:
    line = refused(tmp_path, *mine(tmp_path, json.dumps(GOOD[kind]), row))
    assert line.startswith(f"{tmp_path}/rows.jsonl:2: {expected}")


@pytest.mark.parametrize("lines", [(), ("", "  ")])
def test_an_empty_data_file(tmp_path: Path, lines: tuple[str, ...]) -> None:
    line = refused(tmp_path, *mine(tmp_path, *lines))
    assert line == f"{tmp_path}/rows.jsonl: must hold at least one record, got an empty file"


def test_no_data_at_all(tmp_path: Path) -> None:
    assert refused(tmp_path, "mix=files").startswith("mix.sources must name at least one source")
    line = refused(tmp_path, "mix=files", f"mix.sources.mine.path={tmp_path / 'nowhere.jsonl'}")
    assert line == f"{tmp_path}/nowhere.jsonl: must be a file or folder, got nothing there"


def test_data_that_some_later_stage_lacks_is_told_before_the_first_one_begins(
    tmp_path: Path,
) -> None:
    data = mine(tmp_path, *(json.dumps({"text": f"The fox is red, {i}."}) for i in range(100)))
    line = refused(tmp_path, *data)
    assert line == "mix.sources: no source has demonstrations (mine has text)"


def test_comparisons_by_the_policy_need_labelers(tmp_path: Path, finished_pipeline: Path) -> None:
    prompts = ({"prompt": [{"role": "user", "content": f"Say {i}."}]} for i in range(100))
    data = mine(tmp_path, *map(json.dumps, prompts))
    sft = artifact(finished_pipeline, "sft")
    line = refused(tmp_path, "task=reward", f"reward.init.policy={sft}", *data)
    assert line.startswith("reward.completions must be speakers for a mix whose sources have no")


def test_demonstrations_that_are_all_too_long(tmp_path: Path, finished_pipeline: Path) -> None:
    long = {"role": "assistant", "content": "fox " * 300}
    rows = ({"messages": [USER | {"content": f"Say {i}."}, long]} for i in range(100))
    data = mine(tmp_path, *map(json.dumps, rows))
    init = f"sft.init.policy={artifact(finished_pipeline, 'pretrain')}"
    line = refused(tmp_path, "task=sft", init, *data)
    assert line.startswith("sft.max_length must be enough for some of the train examples, got ")


# ---- the command itself


def test_the_command_answers_with_one_line_soon_and_exit_code_2(
    tmp_path: Path, finished_pipeline: Path
) -> None:
    data = mine(tmp_path, json.dumps(GOOD["demonstration"]), "oops")
    init = f"sft.init.policy={artifact(finished_pipeline, 'pretrain')}"
    line = refused_by_command(tmp_path, "task=sft", init, *data)
    assert line.startswith(f"{tmp_path}/rows.jsonl:2: must be one JSON object")


def test_the_command_compares_tokenizers_before_it_does_anything(
    tmp_path: Path, finished_pipeline: Path
) -> None:
    other = other_tokens(finished_pipeline, "reward", tmp_path / "other")
    # before the pretraining, on which nothing depends here but time
    line = refused_by_command(
        tmp_path, f"outputs={tmp_path / 'new'}", *given(finished_pipeline, other)
    )
    assert line.startswith("ppo.init.reward must have the tokenizer of the policy ")


def test_a_place_of_the_users_that_another_live_process_owns(
    tmp_path: Path, finished_pipeline: Path
) -> None:
    place = tmp_path / "place"
    command = [f"outputs={finished_pipeline}", "task=sft", "sft.examples=64000", f"run_dir={place}"]
    process = start(tmp_path, *command)
    try:
        wait_for(lambda: (place / "metrics.csv").exists(), process)
        begun = time.monotonic()
        with pytest.raises(UserError) as caught:
            rlhf_here(*command)
        assert time.monotonic() - begun < LIMIT_S
        line = f"run_dir must be free, got '{place}', owned by process {process.pid} on "
        assert str(caught.value).startswith(line)
        assert process.poll() is None  # and it goes on
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("task", "parent"), [("sft", "pretrain"), ("reward", "sft")])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, finished_pipeline: Path, task: str, parent: str
) -> None:
    init = f"{task}.init.policy={artifact(finished_pipeline, parent)}"
    broken = [f"{task}.optimizer.lr=1e30", f"{task}.checkpoint_every=1", f"{task}.eval_every=100"]
    with pytest.raises(RunFailed, match=rf"^{task}: step 1: the gradient norm is nan"):
        rlhf_here(f"outputs={tmp_path}", f"task={task}", init, *broken)
    run = only(tmp_path / task)
    found = json.loads((run / "metrics.json").read_text())
    assert found["status"] == "failed"
    assert "step 1" in found["reason"]
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert not (run / "artifact").exists()


def test_a_score_that_is_not_a_number_stops_ppo_before_it_learns_from_it(
    tmp_path: Path, finished_pipeline: Path
) -> None:
    poisoned = tmp_path / "poisoned"
    shutil.copytree(artifact(finished_pipeline, "reward"), poisoned)
    (poisoned / "manifest.json").unlink()
    weights = load_file(poisoned / "model.safetensors")
    weights["score.weight"] = torch.full_like(weights["score.weight"], float("nan"))
    save_file(weights, poisoned / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunFailed, match=r"^ppo: iteration 0: the score is nan"):
        rlhf_here(f"outputs={tmp_path}", "task=ppo", *given(finished_pipeline, poisoned))
    run = only(tmp_path / "ppo")
    assert json.loads((run / "metrics.json").read_text())["status"] == "failed"
    assert not (run / "artifact").exists()
