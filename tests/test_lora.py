"""Adapters end to end: whole runs, what they leave for other tools, what is in memory, going on after a kill."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from rlhf_lightning.batches import Experience
from rlhf_lightning.config import ModelConfig
from rlhf_lightning.functional.scores import RunningMoments
from rlhf_lightning.models.adapters import (
    REFERENCE,
    TRAINED,
    VALUE,
    AdapterView,
    TrunkScorer,
    add_adapter,
)
from rlhf_lightning.models.loading import prepare
from rlhf_lightning.stages.ppo import PPOModule
from rlhf_lightning.stages.rollout import to_experience
from rlhf_lightning.tasks import ppo as ppo_task
from rlhf_lightning.tasks import ppo_models
from tests.harness import only, rlhf_here, start, wait_for
from tests.models.test_adapters import disturb
from tests.stages.test_ppo_adapters import LORA as RANK_2
from tests.stages.tiny_ppo import HP, batches, module
from tests.tiny import tiny_policy, tiny_scorer

# so large a rate that a few steps move the logits by more than rounding
LORA = [
    "lora=default",
    *(f"{stage}.lora.rank=4" for stage in ("sft", "reward", "ppo")),
    *(f"{stage}.optimizer.lr=0.01" for stage in ("sft", "reward", "ppo")),
]
IDS = torch.randint(6, 500, (3, 12), generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def outputs(finished_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`outputs/` after a pipeline with adapters in all three stages; the pretrained model is shared."""
    copy = tmp_path_factory.mktemp("lora") / "outputs"
    shutil.copytree(finished_pipeline, copy, symlinks=True)
    log = logging.getLogger("rlhf_lightning")
    before = log.level
    log.setLevel(logging.INFO)  # as the command does: log.txt is looked at
    rlhf_here(f"outputs={copy}", *LORA, "logger=none")
    yield copy
    log.setLevel(before)


@pytest.fixture(scope="module")
def stages(outputs: Path) -> dict[str, Path]:
    """Stage → its artifact in the pipeline with adapters."""
    (run,) = (
        run
        for run in (outputs / "pipeline").iterdir()
        if (run / "round-1/ppo/artifact/adapter").is_dir()
        and (run / "round-1/sft/artifact/adapter").is_dir()
    )
    places = {"pretrain": "pretrain", **{s: f"round-1/{s}" for s in ("sft", "reward", "ppo")}}
    return {stage: (run / place / "artifact").resolve() for stage, place in places.items()}


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(input_ids=IDS).logits


def test_a_pipeline_with_adapters_finishes_and_counts_what_it_trained(
    stages: dict[str, Path],
) -> None:
    for stage in ("sft", "ppo"):
        found = json.loads((stages[stage].parent / "metrics.json").read_text())
        metrics = found["metrics"]
        assert found["status"] == "finished"
        assert 0 < metrics[f"{stage}/trained_parameters"] < metrics[f"{stage}/parameters"]
    log = (stages["ppo"].parent / "log.txt").read_text()
    assert "parameters are trained (adapters)" in log
    assert "of its own in memory" not in log


@pytest.mark.parametrize(("stage", "parent"), [("sft", "pretrain"), ("ppo", "sft")])
def test_merged_weights_are_a_plain_model_and_the_adapter_on_its_parent_is_the_same(
    stages: dict[str, Path], stage: str, parent: str
) -> None:
    names = set(load_file(stages[stage] / "model.safetensors"))
    assert names == set(load_file(stages[parent] / "model.safetensors"))
    merged = logits(AutoModelForCausalLM.from_pretrained(stages[stage]))
    base = AutoModelForCausalLM.from_pretrained(stages[parent])
    before = logits(base)
    assert (merged - before).abs().max() > 1e-3  # it has learnt something
    adapted = PeftModel.from_pretrained(base, str(stages[stage] / "adapter"))
    torch.testing.assert_close(logits(adapted), merged, atol=1e-5, rtol=1e-4)
    settings = json.loads((stages[stage] / "adapter/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(stages[parent])
    assert settings["task_type"] == "CAUSAL_LM"


def test_the_rewards_adapter_brings_its_head_to_the_backbone_it_was_trained_on(
    stages: dict[str, Path],
) -> None:
    kind = AutoModelForSequenceClassification
    merged = kind.from_pretrained(stages["reward"])
    base = kind.from_pretrained(stages["sft"], num_labels=1)  # its head is random
    adapted = PeftModel.from_pretrained(base, str(stages["reward"] / "adapter"))
    torch.testing.assert_close(logits(adapted), logits(merged), atol=1e-5, rtol=1e-4)
    settings = json.loads((stages["reward"] / "adapter/adapter_config.json").read_text())
    assert settings["task_type"] == "SEQ_CLS"


def test_adapters_on_a_frozen_bfloat16_model_from_sft_to_ppo(
    stages: dict[str, Path], tmp_path: Path
) -> None:
    """What the experiments on real models do. The merged weights are the adapter's but for their rounding."""
    outputs = tmp_path / "outputs"
    own = ["model=hf", f"model.path={stages['pretrain']}", "model.context_length=144"]
    rlhf_here(f"outputs={outputs}", *own, "model.dtype=bfloat16", *LORA, "logger=none")
    base = AutoModelForCausalLM.from_pretrained(stages["pretrain"], dtype=torch.bfloat16)
    for stage in ("sft", "ppo"):
        artifact = only(outputs / stage) / "artifact"
        merged = AutoModelForCausalLM.from_pretrained(artifact, dtype="auto")
        assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
        adapter = load_file(artifact / "adapter/adapter_model.safetensors")
        assert {t.dtype for t in adapter.values()} == {torch.float32}
        before, after = logits(base), logits(merged)
        adapted = logits(PeftModel.from_pretrained(base, str(artifact / "adapter")).eval())
        learnt, rounding = (adapted - before).abs().mean(), (adapted - after).abs().mean()
        assert learnt > 0
        assert rounding < learnt / 3, f"{stage}: {rounding} of {learnt}"
        base = merged
    assert "of its own in memory" not in (only(outputs / "ppo") / "log.txt").read_text()


def bytes_of(run: Path) -> list[bytes]:
    artifact = run / "artifact"
    files = ("adapter/adapter_model.safetensors", "model.safetensors")
    return [(artifact / name).read_bytes() for name in files]


def rows(run: Path) -> int:
    """Iterations that metrics.csv has seen."""
    if not (run / "metrics.csv").exists():
        return 0
    steps = [line.split(",")[0] for line in (run / "metrics.csv").read_text().splitlines()[1:]]
    return max((int(step) for step in steps if step.isdigit()), default=0)


def test_ppo_with_adapters_killed_and_started_again_ends_in_the_same_adapter(
    outputs: Path, tmp_path: Path, began_with: list[str | None]
) -> None:
    """With a reference that is refreshed: its adapter is in the checkpoint too."""
    command = [f"outputs={outputs}", "task=ppo", *LORA, "logger=none", "ppo.iterations=5"]
    command += [
        "ppo.checkpoint_every=2",
        "ppo.reference_refresh_every=2",
        "ppo.ema_decay=0.9",
        "ppo.eval_every=5",
    ]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    process = start(tmp_path, *command, f"run_dir={broken}")
    wait_for(lambda: rows(broken) >= 3, process)
    process.kill()
    process.communicate()
    assert (broken / "checkpoints/last.ckpt").is_file() and not (broken / "artifact").exists()
    checkpoint = torch.load(broken / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    frozen = [n for n in checkpoint if n.startswith("policy.") and ".lora_" not in n]
    assert checkpoint and not frozen  # they come back with the parent's artifact
    rlhf_here(*command, f"run_dir={broken}")
    rlhf_here(*command, f"run_dir={straight}")
    assert began_with == ["last.ckpt", None]
    assert bytes_of(broken) == bytes_of(straight)


# ---- what is in memory


class Made(Exception):
    """Raised in place of training: the module is all that is looked at."""

    def __init__(self, module: PPOModule) -> None:
        self.module = module


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A function: overrides of task=ppo → the module that would be trained."""

    def instead(job: Any, module: PPOModule, *args: Any, **kwargs: Any) -> None:
        raise Made(module)

    def make(outputs: Path, *overrides: str) -> PPOModule:
        monkeypatch.setattr(ppo_task, "fit", instead)
        place = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        with pytest.raises(Made) as caught:
            rlhf_here(f"outputs={outputs}", "task=ppo", *overrides, f"run_dir={place}")
        return caught.value.module

    return make


def parameters(*models: nn.Module) -> int:
    """Numbers in memory: of a backbone that several models share, once."""
    found: dict[int, int] = {}
    for model in models:
        parts = [model, *(m for m in model.modules() if isinstance(m, TrunkScorer | AdapterView))]
        for part in [*parts, *(p.trunk for p in parts if isinstance(p, TrunkScorer | AdapterView))]:
            found |= {id(p): p.numel() for p in part.parameters()}
    return sum(found.values())


def test_policy_reference_value_and_reward_share_one_backbone(
    outputs: Path, stages: dict[str, Path], made: Any
) -> None:
    ppo = made(outputs, *LORA)
    reward: Any = ppo.reward
    assert isinstance(ppo.reference, AdapterView) and ppo.reference.trunk is ppo.policy
    assert ppo.reference.adapter is None
    assert isinstance(ppo.value, TrunkScorer) and ppo.value.trunk is ppo.policy
    (scorer,) = (m for m in reward.modules() if isinstance(m, TrunkScorer))
    assert scorer.trunk is ppo.policy
    backbone = sum(t.numel() for t in load_file(stages["sft"] / "model.safetensors").values())
    adapter = load_file(stages["ppo"] / "adapter/adapter_model.safetensors")
    each = sum(t.numel() for t in adapter.values())
    # one backbone, three adapters (policy, value, reward), two heads of 32 numbers
    assert parameters(ppo, ppo.reference, reward) == backbone + 3 * each + 2 * 32


def test_a_reference_that_is_refreshed_has_an_adapter_of_its_own(outputs: Path, made: Any) -> None:
    reference = made(outputs, *LORA, "ppo.reference_refresh_every=2").reference
    assert isinstance(reference, AdapterView) and reference.adapter == REFERENCE


def test_a_reward_model_on_the_policys_backbone_has_its_bias_and_gain(
    outputs: Path, stages: dict[str, Path], made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((stages["reward"] / "config.json").read_text())
    assert config["reward_bias"] != 0 and config["reward_gain"] == 1
    # as if reward.calibrate_gain had been set
    monkeypatch.setattr(ppo_models, "load_config", lambda _: config | {"reward_gain": 3.0})
    ppo = made(outputs, *LORA)
    (scorer,) = (m for m in ppo.reward.modules() if isinstance(m, TrunkScorer))
    for model in (scorer, ppo.value):
        assert model.config.reward_bias == config["reward_bias"]
        assert model.config.reward_gain == 3.0


@pytest.mark.parametrize("kind", [LORA, ()], ids=["adapter", "separate"])
def test_the_value_model_begins_with_the_reward_models_head(
    kind: Sequence[str],
    outputs: Path,
    finished_pipeline: Path,
    stages: dict[str, Path],
    made: Any,
) -> None:
    reward = stages["reward"] if kind else only(finished_pipeline / "reward") / "artifact"
    head = load_file(reward / "model.safetensors")["score.weight"]
    assert torch.equal(made(outputs, *kind).value.score.weight, head)


@pytest.mark.parametrize("kind", [LORA, ()], ids=["adapter", "separate"])
def test_the_value_model_begins_as_the_score_counts_its_reward_model(
    kind: Sequence[str], outputs: Path, made: Any
) -> None:
    """It began as the whole score of a part that counts a tenth."""
    whole, tenth = (
        made(outputs, *kind, f"reward_source.parts.learned.weight={weight}").value
        for weight in (1.0, 0.1)
    )
    assert whole.score.weight.any()
    assert torch.equal(whole.score.weight, tenth.score.weight)
    assert tenth.config.reward_gain == pytest.approx(whole.config.reward_gain / 10)
    assert tenth.config.reward_bias == whole.config.reward_bias


def test_without_adapters_there_are_four_models(outputs: Path, made: Any) -> None:
    ppo = made(outputs)
    alone = parameters(ppo.policy)
    assert parameters(ppo, ppo.reference, ppo.reward) > 3.5 * alone


def test_a_reward_model_with_another_backbone_is_loaded_whole_and_the_log_says_so(
    outputs: Path, made: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The reward model of the pipeline without adapters has none to put on the policy's backbone."""
    plain = min((outputs / "reward").iterdir(), key=lambda r: (r / "identity.json").stat().st_mtime)
    caplog.set_level("INFO", logger="rlhf_lightning")
    ppo = made(outputs, *LORA, f"ppo.init.reward={plain}")
    said = [record.getMessage() for record in caplog.records]
    expected = "reward has another backbone than the policy: it is a model of its own in memory"
    assert f"ppo: {expected}" in said
    assert any("the value adapter starts at V = 0" in line for line in said)
    reward: Any = ppo.reward
    assert any(isinstance(m, PreTrainedModel) for m in reward.modules())
    assert isinstance(ppo.value, TrunkScorer) and not ppo.value.score.weight.any()


@pytest.mark.parametrize("pinned", ["sha256", "commit", None])
def test_a_reward_model_and_a_policy_from_the_models_own_weights_share_them(
    stages: dict[str, Path], made: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch, pinned: str | None,
) -> None:  # fmt: skip
    """Without SFT: README's command for pairs alone, with adapters. A hub's model without a revision may change."""
    rows = [{"prompt": f"Is it {i}?", "chosen": "It is.", "rejected": "No"} for i in range(60)]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = [
        *("model=hf", f"model.path={stages['pretrain']}", "model.context_length=144", "mix=files"),
        *(f"mix.sources.mine.path={pairs}", "mix.validation_fraction=0.3", "mix.test_fraction=0.3"),
        *("reward.init.policy=none", "ppo.init.policy=none", "reward.completions=speakers"),
        *LORA,
    ]
    runs = tmp_path / "outputs"
    rlhf_here(f"outputs={runs}", "task=reward", *own)
    if pinned != "sha256":  # as if it were of the hub
        revision = "0" * 40 if pinned else "main"
        hub = {"path": "a/b", "revision": revision, "dtype": "float32"}
        whole = ppo_models._weights_of
        monkeypatch.setattr(ppo_models, "_weights_of", lambda model: whole(hub))
    caplog.set_level("INFO", logger="rlhf_lightning")
    caplog.clear()
    ppo = made(runs, *own)
    scorers = [m for m in ppo.reward.modules() if isinstance(m, TrunkScorer)]
    assert [scorer.trunk is ppo.policy for scorer in scorers] == ([True] if pinned else [])
    assert ("of its own in memory" in caplog.text) is (pinned is None)


def test_own_weights_are_named_by_their_files_or_a_commit_and_by_their_precision() -> None:
    folder = {"path": "x", "revision": None, "dtype": "float32", "sha256": "1"}
    commit = {"path": "x", "revision": "a" * 40, "dtype": "float32"}
    found = [
        folder, {**folder, "sha256": "2"}, {**folder, "dtype": "bfloat16"},
        commit, {**commit, "path": "y"}, {**commit, "revision": "b" * 40}, {**commit, "dtype": "bfloat16"},
    ]  # fmt: skip
    assert len({ppo_models._weights_of(model) for model in found}) == len(found)
    for revision in (None, "main", "v1.0"):
        assert ppo_models._weights_of({**commit, "revision": revision}) is None
    assert ppo_models._weights_of({**commit, "path": None}) is None


# ---- every kind of value model


@pytest.mark.parametrize(
    "overrides",
    [
        ["ppo.value=shared"],
        [*LORA, "ppo.value=shared"],
        [*LORA, "ppo.value=separate"],
        ["ppo.advantage=rloo", "ppo.samples_per_prompt=4"],
        [*LORA, "ppo.advantage=rloo", "ppo.samples_per_prompt=4", "ppo.share_prompt=true"],
    ],
    ids=lambda overrides: "+".join(o for o in overrides if "lr" not in o and "rank" not in o),
)
def test_every_kind_of_value_model_runs_to_the_end(
    outputs: Path, tmp_path: Path, overrides: list[str]
) -> None:
    run = tmp_path / "run"
    short = ["logger=none", "ppo.iterations=1", f"run_dir={run}"]
    metrics = rlhf_here(f"outputs={outputs}", "task=ppo", *overrides, *short)
    assert metrics["ppo/episodes"] == 16
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    rloo = "ppo.advantage=rloo" in overrides
    assert ("ppo/value_loss" in header) != rloo
    assert ("ppo/explained_variance" in header) != rloo
    artifact = run / "artifact"
    assert (artifact / "adapter").is_dir() == ("lora=default" in overrides)
    assert torch.isfinite(logits(AutoModelForCausalLM.from_pretrained(artifact))).all()


def test_four_samples_of_each_prompt_are_a_quarter_of_the_prompts(outputs: Path, made: Any) -> None:
    ppo = made(outputs, "ppo.advantage=rloo", "ppo.samples_per_prompt=4")
    assert ppo.value is None and ppo.hp.prompts_per_iteration == 16 // 4


# ---- gradient checkpointing


def gradients(ppo: PPOModule, experience: Experience) -> dict[str, Tensor]:
    """Of one micro-batch, by parameter."""
    ppo.zero_grad()
    ppo.minibatches.manual_backward = lambda loss: loss.backward()
    ppo.train()
    tokens = int(experience.response_mask.sum())
    ppo.minibatches.backward(experience, tokens, ppo.progress, first=True)
    return {n: p.grad.clone() for n, p in ppo.named_parameters() if p.grad is not None}


def _model(checkpointing: bool) -> ModelConfig:
    llama = {"model_type": "llama"}
    return ModelConfig(name="tiny", architecture=llama, gradient_checkpointing=checkpointing)


@pytest.mark.parametrize("value", ["adapter", "shared", "separate"])
def test_checkpointed_activations_give_the_same_gradients(value: str) -> None:
    """Layers run again in backward, when no forward pass holds the adapter on any more."""

    def made(checkpointing: bool) -> PPOModule:
        policy = tiny_policy()
        add_adapter(policy, RANK_2, TRAINED, seed=0)
        disturb(policy, TRAINED, seed=1)
        own: Any = tiny_scorer()
        if value == "adapter":
            add_adapter(policy, RANK_2, VALUE, seed=1)
            disturb(policy, VALUE, seed=2)
            own = TrunkScorer(policy, VALUE, head=torch.full((1, 32), 0.1))
            own.owns_adapter = True
        if value == "shared":
            own = TrunkScorer(policy, TRAINED, head=torch.full((1, 32), 0.1))
        if value == "separate":
            add_adapter(own, RANK_2, TRAINED, seed=3)
            disturb(own, TRAINED, seed=4)
        for model in (policy, own):
            if isinstance(model, PreTrainedModel):
                prepare(model, _model(checkpointing))
        hp = replace(HP, lora=RANK_2, value=value, value_coef=1.0)
        return module(hp, policy=policy, value=own, reference=AdapterView(policy, None))

    plain, checkpointed = made(False), made(True)
    rollout = plain.rollout(batches(1)[0].prompts, plain.generator)
    experience, _ = to_experience(rollout, plain.hp, kl_coef=0.05, moments=RunningMoments())
    expected, passes = gradients(plain, experience), []
    layer = checkpointed.policy.model.layers[0]
    layer.mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    found = gradients(checkpointed, experience)
    # policy (and value adapter): forward, and again in backward
    assert len(passes) == (4 if value == "adapter" else 2)
    assert found.keys() == expected.keys() and len(found) > 8
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-7, rtol=1e-5)
    if value == "adapter":  # each adapter has its own, and it is not nothing
        for adapter in (TRAINED, VALUE):
            assert any(g.any() for n, g in expected.items() if f".{adapter}." in n)
