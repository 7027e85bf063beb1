"""The chain of stages: what it leaves, what it reuses, who shares it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from rlhf_lightning import compose
from rlhf_lightning.data.mixture import Mixture
from rlhf_lightning.errors import UserError
from tests.harness import json_lines, only, rlhf, rlhf_here, start

REQUIRED = (
    [
        f"{m}/{k}"
        for m in ("base", "sft", "ppo")
        for k in ("gold_score", "helpful", "truthful", "harmless")
    ]
    + ["ppo/win_rate_vs_sft", "sft/win_rate_vs_base", "reward/pairwise_accuracy"]
    + ["reward/length_baseline_accuracy", "labelers/agreement", "ppo/kl_k1", "ppo/eos_rate"]
    + [f"time/{s}_s" for s in ("pretrain", "sft", "reward", "ppo", "evaluate")]
)


def metrics_of(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def test_a_pipeline_leaves_every_promised_metric_and_file(pipeline_outputs: Path) -> None:
    run = only(pipeline_outputs / "pipeline")
    found = metrics_of(run)
    assert found["status"] == "finished" and found["task"] == "pipeline"
    assert set(REQUIRED) <= found["metrics"].keys()
    for place in ("pretrain", "round-1/sft", "round-1/reward", "round-1/ppo", "evaluate"):
        assert (run / place).is_symlink() and (run / place / "metrics.json").is_file()
    for name in (
        "metrics.csv",
        "log.txt",
        "tensorboard",
        "samples.jsonl",
        "artifact/manifest.json",
        "artifact/README.md",
    ):
        assert (run / "round-1/ppo" / name).exists(), name
    assert (run / "evaluate" / "report.html").is_file()
    report = (run / "report.html").read_text()
    assert "model.name" in report  # the settings that differ from the default
    did = "Pretraining, supervised fine-tuning, a reward model from ranked completions, PPO."
    assert did in report
    assert "http://" not in report.replace("http://www.w3.org", "") and "<script src" not in report


def test_what_measures_a_pipeline_was_held_out(finished_pipeline: Path) -> None:
    root = compose.check(compose.compose(["experiment=debug"]))
    mixture = Mixture(root.mix, root.seed)
    reward, ppo, evaluate = (only(finished_pipeline / t) for t in ("reward", "ppo", "evaluate"))
    first = {
        split: [record["prompt"] for record in mixture.records("prompt", split, 60)]
        for split in ("train", "validation", "test")
    }
    for split, prompts in first.items():
        rows = json_lines(reward / "data" / f"comparisons_{split}.jsonl")
        assert all(row["prompt"] in prompts for row in rows)
    assert all(row["prompt"] in first["test"] for row in json_lines(evaluate / "samples.jsonl"))
    tokenizer = AutoTokenizer.from_pretrained(ppo / "artifact")
    as_text = partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
    watched = {row["prompt"] for row in json_lines(ppo / "samples.jsonl")}
    assert len(watched) == 2 and watched <= {as_text(prompt) for prompt in first["validation"]}


def test_tensorboard_holds_the_scalars_the_tables_and_the_heat_strips(
    pipeline_outputs: Path,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(
        str(only(pipeline_outputs / "ppo") / "tensorboard"), size_guidance={"tensors": 0}
    )
    events.Reload()
    tags = events.Tags()
    assert {"rollout/score", "ppo/policy_loss", "val/gold_score", "time/rollout_s"} <= set(
        tags["scalars"]
    )
    assert [e.step for e in events.Scalars("rollout/score")] == [1, 2]
    assert any("samples" in tag for tag in tags["tensors"])
    assert any("tokens" in tag for tag in tags["images"])
    assert "score_over_kl" in tags["images"]


def test_an_evaluation_alone_has_its_page_too(pipeline_outputs: Path, tmp_path: Path) -> None:
    runs = [only(pipeline_outputs / t) for t in ("pretrain", "sft", "ppo", "reward")]
    base, sft, ppo, reward = runs
    metrics = rlhf_here(
        f"outputs={tmp_path}",
        "task=evaluate",
        f"evaluate.models={{base: {base}, sft: {sft}, ppo: {ppo}}}",
        f"evaluate.reward={reward}",
    )
    run = only(tmp_path / "evaluate")
    report = (run / "report.html").read_text()
    assert "What each model says to the same held-out prompts" in report
    assert "Who wins" in report and "<b>ppo</b> against sft" in report
    assert f"{metrics['ppo/gold_score']:.3f}" in report
    # its own row: 16 prompts of experiment=debug, and how long it took
    assert re.search(r"<b>evaluate</b>.*\s+.*>16</td>.*\d+ s</td>", report)
    assert (tmp_path / "latest").resolve() == run.resolve()


def test_a_runs_loggers_are_made_once_and_named_after_it(tmp_path: Path) -> None:
    from rlhf_lightning.tasks.job import Job

    made: list[dict] = []

    def build(node: dict, **given: str) -> object:
        made.append(given)
        return object()

    root = compose.check(compose.compose(["logger=wandb"]))
    run = SimpleNamespace(path=tmp_path / "nano-demo-s0-abc", tensorboard=tmp_path / "board")
    job = Job("ppo", 1, root, run, {}, None, None, build)  # type: ignore[arg-type]
    assert job.loggers is job.loggers
    board = {"save_dir": str(tmp_path / "board")}
    # TensorBoard's name is a folder and given; the other one is null and becomes the run's
    assert made == [board, board | {"name": "ppo-nano-demo-s0-abc"}]

    def missing(node: dict, **given: str) -> object:
        raise ModuleNotFoundError("No module named 'wandb'")

    root.logger["wandb"] = None  # switched off
    made.clear()
    assert len(Job("ppo", 1, root, run, {}, None, None, build).loggers) == 1  # type: ignore[arg-type]
    job = Job("ppo", 1, root, run, {}, None, None, missing)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^logger\.tensorboard must have its package installed"):
        job.loggers  # noqa: B018


@pytest.mark.parametrize("how", ["", "dry_run=true"])
def test_a_logger_without_its_package_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    from rlhf_lightning import binding

    monkeypatch.setattr(binding, "find_spec", lambda name: None)
    given = [f"outputs={tmp_path}", "task=pretrain", *([how] if how else [])]
    with pytest.raises(
        UserError,
        match=r"^logger\.wandb must have its package installed, got no module named 'wandb':"
        r" pip install wandb$",
    ):
        rlhf_here(*given, "logger=wandb")
    assert list(tmp_path.iterdir()) == []
    # one that is off is not asked for
    rlhf_here(*given, "logger=wandb", "logger.wandb=null", "dry_run=true")


def test_the_same_command_again_does_nothing(pipeline_outputs: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in pipeline_outputs.rglob("*") if p.is_file()}
    rlhf_here(f"outputs={pipeline_outputs}")
    assert before == {p: p.stat().st_mtime_ns for p in pipeline_outputs.rglob("*") if p.is_file()}


def test_dry_run_names_exactly_the_stages_that_will_run(
    pipeline_outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def states(*overrides: str) -> dict[str, str]:
        capsys.readouterr()
        rlhf_here(f"outputs={pipeline_outputs}", "dry_run=true", *overrides)
        lines = [
            line.split()
            for line in capsys.readouterr().out.splitlines()
            if not line.startswith(" ")
        ]
        return {words[0]: words[1] for words in lines}

    reused = dict.fromkeys(("pretrain", "sft", "reward", "ppo", "evaluate"), "reused")
    assert states() == reused
    assert states("ppo.kl_coef=0.3") == reused | {"ppo": "new", "evaluate": "new"}
    assert states("reward.epochs=2") == reused | {"reward": "new", "ppo": "new", "evaluate": "new"}
    assert states("evaluate.prompts=20") == reused | {"evaluate": "new"}
    assert states("sft.optimizer.lr=0.5") == dict.fromkeys(reused, "new") | {"pretrain": "reused"}
    assert states("ppo.checkpoint_every=7", "trainer.devices=1", "logger=none") == reused


def test_dry_run_says_what_differs_from_the_nearest_run(
    pipeline_outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rlhf_here(f"outputs={pipeline_outputs}", "dry_run=true", "ppo.kl_coef=0.3")
    assert "ppo.kl_coef: 0.2 → 0.3" in capsys.readouterr().out


def test_dry_run_names_six_settings_and_counts_the_others(
    pipeline_outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {"kl_coef": 0.3, "gamma": 0.9, "gae_lambda": 0.9, "clip_range": 0.3, "epochs": 3}
    changed |= {"value_coef": 0.2, "grad_clip": 2, "temperature": 0.5}
    keys = [f"ppo.{key}={value}" for key, value in changed.items()]
    rlhf_here(f"outputs={pipeline_outputs}", "dry_run=true", *keys)
    (line,) = (x for x in capsys.readouterr().out.splitlines() if "ppo.clip_range: " in x)
    named = line.split("differs in ")[1].split("; ")
    assert len(named) == 7 and all(": " in item and "→" in item for item in named[:6])
    assert named[6] == "and 2 more"


def test_artifacts_load_where_only_transformers_is(pipeline_outputs: Path, tmp_path: Path) -> None:
    ppo, reward = (only(pipeline_outputs / task) / "artifact" for task in ("ppo", "reward"))
    script = f"""
import sys
sys.modules["rlhf_lightning"] = None  # importing it would raise
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(ppo)!r})
text = tokenizer.apply_chat_template([{{"role": "user", "content": "What does the fox eat?"}}], tokenize=False, add_generation_prompt=True)
ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
model = AutoModelForCausalLM.from_pretrained({str(ppo)!r})
assert model.generate(**ids, max_new_tokens=3, do_sample=False).shape[0] == 1
scorer = AutoModelForSequenceClassification.from_pretrained({str(reward)!r})
assert scorer(**ids).logits.shape == (1, 1)
assert tokenizer.pad_token_id != tokenizer.eos_token_id
assert not any(name.startswith("rlhf_lightning.") for name in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_stage_without_its_parents_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"needs the run of pretrain first.*rlhf task=pretrain .*seed=5"
    ):
        rlhf_here(f"outputs={tmp_path}", "task=sft", "seed=5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "overrides",
    [
        ["task=reward", "model@reward.model=nano"],
        ["task=reward", "model=nano", "model@reward.model=nano"],
        ["task=evaluate", "pipeline.rounds=2", "reward_source=ensemble"],
        ["pipeline.only=round-1/ppo"],
    ],
    ids=["another size", "the same size", "a later round", "a part of the chain"],
)
def test_each_command_that_is_named_makes_the_run_that_is_missing(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = []
    while True:
        rlhf_here(f"outputs={tmp_path}", "dry_run=true", *overrides)
        *missing, stage = (
            found for line in capsys.readouterr().out.splitlines()
            if (found := re.match(r"(.*\S) +(missing|new) +(\S.*)", line))
        )  # fmt: skip
        assert not named or stage[1] == named[-1]
        if not missing:
            break
        named.append(missing[-1][1])
        assert len(named) < 12, named
        overrides = shlex.split(missing[-1][3])[1:]
    assert named


def test_run_dir_holds_the_run_and_refuses_another_one(
    pipeline_outputs: Path, tmp_path: Path
) -> None:
    sft, reward = (only(pipeline_outputs / task) for task in ("sft", "reward"))
    init = [
        f"ppo.init.policy={sft}",
        f"ppo.init.reward={reward}/artifact",
        f"run_dir={tmp_path / 'mine'}",
    ]
    metrics = rlhf_here(f"outputs={pipeline_outputs}", "task=ppo", *init)
    assert "ppo/validation/kl_k1" in metrics and "ppo/validation/eos_rate" in metrics
    assert (tmp_path / "mine" / "artifact" / "model.safetensors").is_file()
    with pytest.raises(UserError, match=r"run_dir .*ppo\.kl_coef: 0\.2 → 0\.3"):
        rlhf_here(f"outputs={pipeline_outputs}", "task=ppo", *init, "ppo.kl_coef=0.3")


def test_two_rounds_collect_from_the_current_policy(pipeline_outputs: Path) -> None:
    rlhf_here(f"outputs={pipeline_outputs}", "pipeline.rounds=2")
    runs = [p for p in (pipeline_outputs / "pipeline").iterdir() if (p / "round-2").exists()]
    second = json.loads((runs[0] / "round-2/reward/identity.json").read_text())
    first_ppo = json.loads((runs[0] / "round-1/ppo/identity.json").read_text())
    assert second["identity"]["parents"]["policy"] == first_ppo["hash"]
    prompts = [
        {
            row["prompt"][-1]["content"]
            for row in json_lines(runs[0] / f"round-{r}/reward/data/comparisons_train.jsonl")
        }
        for r in (1, 2)
    ]
    assert prompts[0] != prompts[1]


def test_two_processes_that_start_the_same_pipeline_do_the_work_once(tmp_path: Path) -> None:
    processes = [start(tmp_path) for _ in range(2)]
    outputs = [p.communicate(timeout=280) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    for task in ("pretrain", "sft", "reward", "ppo", "evaluate", "pipeline"):
        run = only(tmp_path / "outputs" / task)
        assert metrics_of(run)["status"] == "finished"
    assert (tmp_path / "outputs/latest").resolve() == run.resolve()  # the pipeline's
    said = [out + err for out, err in outputs]
    assert sum("waiting for" in text for text in said) == 1
    assert sum("ppo: new" in text for text in said) == 1


def test_in_a_multirun_a_bad_job_does_not_stop_the_others(
    pipeline_outputs: Path, tmp_path: Path
) -> None:
    done = rlhf(
        tmp_path,
        "-m",
        f"outputs={pipeline_outputs}",
        "task=ppo",
        "logger=none",
        "ppo.kl_coef=-1,0.07,0.08",
    )
    assert done.returncode != 0
    assert "ppo.kl_coef must be >= 0, got -1" in done.stderr and "Traceback" not in done.stderr
    coefs = [
        json.loads((run / "identity.json").read_text())["identity"]["ppo"]["kl_coef"]
        for run in (pipeline_outputs / "ppo").iterdir()
    ]
    assert {0.07, 0.08} <= set(coefs)
    assert len(list((pipeline_outputs / "sft").iterdir())) == 1  # shared, not repeated


def test_the_reward_model_may_have_another_size(pipeline_outputs: Path) -> None:
    size = "{hidden_size: 48, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 2}"
    rlhf_here(
        f"outputs={pipeline_outputs}",
        "model@reward.model=small",
        "reward.model.name=wide",
        f"reward.model.architecture={size}",
        "ppo.iterations=1",
    )
    (reward,) = (pipeline_outputs / "reward").glob("wide-*")
    config = json.loads((reward / "artifact/config.json").read_text())
    assert config["hidden_size"] == 48
    policies = {
        json.loads((run / "artifact/config.json").read_text())["hidden_size"]
        for run in (pipeline_outputs / "ppo").iterdir()
    }
    assert policies == {32}
