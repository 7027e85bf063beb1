"""The config tree: what composes, and the one line that each kind of bad input gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from rlhf_lightning import compose
from rlhf_lightning.compose_errors import one_line
from rlhf_lightning.config import RootConfig
from rlhf_lightning.errors import UserError
from rlhf_lightning.signatures import config_fields, signature

CHOSEN_AS = {
    "adapter": "adapter@sft.lora",
    "optimizer": "optimizer@sft.optimizer",
    "schedule": "schedule@sft.schedule",
    "slurm": "slurm@pipeline.slurm",
}
"""Groups that have their place under a stage."""
OPTIONS = [
    f"{CHOSEN_AS.get(group.name, group.name)}={file.stem}"
    for group in sorted(compose.conf_dir().iterdir())
    if group.is_dir() and group.name != "hydra"  # Hydra's own: no part of the tree that is checked
    for file in sorted(group.glob("*.yaml"))
]
TARGET = "reward_source.parts.function.target=tests.rewards.mine.words"
NEEDS = {
    "model=hf": ["model.path=somewhere"],
    "experiment=own_data": ["model.path=somewhere"],
    "reward_source=function": [TARGET],
    "reward_source=weighted": [TARGET],
    "reward_source=model": ["reward_source.parts.model.path=some/hub_id"],
}
"""Option → what it leaves to the user."""


RLOO = ("ppo.advantage=rloo", "ppo.samples_per_prompt=4")


def checked(*overrides: str) -> RootConfig:
    return compose.check(compose.compose(overrides))


def complaint(*overrides: str) -> str:
    """The line that a user would see."""
    with pytest.raises(Exception) as caught:
        checked(*overrides)
    line = (
        one_line(caught.value, overrides)
        if not isinstance(caught.value, UserError)
        else str(caught.value)
    )
    assert "\n" not in line
    return line


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_every_group_passes_the_check(option: str, tmp_path: Path) -> None:
    needs = NEEDS.get(option, [])
    if option == "experiment=sentiment_gpt":  # its lexicon is read by the check
        lexicon = tmp_path / "vader_lexicon" / "vader_lexicon.txt"
        lexicon.parent.mkdir()
        lexicon.write_text("good\t1.9\n")
        needs = [f"mix.root={tmp_path}"]
    checked(option, *needs)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "ppo"])
def test_an_optimizer_is_swapped_in_one_place(stage: str, optimizer: str) -> None:
    root = checked(f"optimizer@{stage}.optimizer={optimizer}", f"{stage}.optimizer.lr=0.5")
    node = getattr(root, stage).optimizer
    assert node["_target_"].lower().endswith(optimizer)
    assert node["lr"] == 0.5


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_schedule_is_swapped_in_one_place(schedule: str) -> None:
    assert checked(f"schedule@ppo.schedule={schedule}").ppo.schedule.name == schedule


@pytest.mark.parametrize("preset", ["default", "instructgpt", "tldr"])
def test_a_schedule_is_swapped_whatever_the_preset(preset: str) -> None:
    assert checked(f"ppo={preset}", "schedule@ppo.schedule=cosine").ppo.schedule.name == "cosine"


def test_the_papers_presets_choose_their_schedule() -> None:
    instructgpt = checked("ppo=instructgpt").ppo.schedule
    assert (instructgpt.name, instructgpt.warmup_fraction) == ("constant", 0.02)
    assert checked("ppo=tldr").ppo.schedule.name == "linear"


def test_only_the_stages_of_the_command_must_divide_among_processes() -> None:
    many = ["strategy=ddp", "trainer.devices=16"]
    assert checked("task=ppo", *many).reward.global_batch_size == 8
    with pytest.raises(UserError, match=r"reward.global_batch_size must be a multiple of the 16"):
        checked(*many)
    assert checked("reward_source=model", "reward_source.parts.model.path=a/b", *many)


def test_a_model_of_the_evaluation_is_skipped() -> None:
    assert list(checked("evaluate.models.base=skip").evaluate.models) == ["sft", "ppo"]


def test_the_reward_model_takes_another_size() -> None:
    assert checked().reward.model is None
    root = checked("model@reward.model=small")
    assert root.reward.model is not None
    assert (root.model.name, root.reward.model.name) == ("nano", "small")


def test_new_names_need_no_plus_on_the_command_line() -> None:
    root = checked(
        "mix=files",
        "mix.sources.mine.path=a.jsonl",
        "mix.weights.mine=0.3",
        "evaluate.models.other=somewhere",
        "model.architecture.rms_norm_eps=1e-5",
    )
    assert root.mix.sources["mine"].path == "a.jsonl"
    assert root.mix.weights == {"mine": 0.3}
    assert root.evaluate.models["other"] == "somewhere"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        # unknown group option
        (["model=nanoo"], "smollm2_1_7b, got 'nanoo'; did you mean nano?"),
        (["ppo=3"], "ppo must be one of default, instructgpt, tldr, got '3'"),
        (
            ["experiment=debgu"],
            "sentiment_gpt, got 'debgu'; did you mean debug?",
        ),
        (["model=org/name"], "got 'org/name'; a model of the hub or a folder: model=hf model.path=org/name"),
        (["mix=my.jsonl"], "got 'my.jsonl'; a file or folder of yours: mix=files mix.sources.mine.path=my.jsonl"),
        (["lora=null"], "attention, default, got null; without adapters: sft.lora=null reward.lora=null ppo.lora=null"),
        (["optimizer@sft.optimiser=sgd"], "did you mean optimizer@sft.optimizer?"),
        # unknown key on the command line
        (["ppo.kl_coeff=1"], "ppo.kl_coeff must be a known setting, got an unknown key; did you mean ppo.kl_coef?"),
        (["kl_coef=1"], "did you mean ppo.kl_coef?"),
        (["sft.lr=1"], "got an unknown key; did you mean sft.optimizer.lr?"),
        (["resume=true"], "got an unknown key; the same command continues a run"),
        (["trainer.max_epochs=3"], "got an unknown key; ppo.iterations, reward.prompts, sft.examples and epochs say"),
        (["tsk=ppo"], "did you mean task?"),
        (["+foo=1"], "foo must be a known setting"),
        (["+ppo.kl_coeff=1"], "ppo.kl_coeff must be a known setting, got an unknown key; did you mean kl_coef?"),
        (["mix.sources.mine.pth=x"], "mix.sources.mine.pth must be a known setting"),
        # unknown key in a `_target_` node, and in what else is foreign
        (["+sft.optimizer.lrr=1"], "sft.optimizer.lrr must be a parameter of torch.optim.AdamW, got 'lrr'; did you mean lr?"),
        (["+logger.tensorboard.nam=x"], "logger.tensorboard.nam must be a parameter of"),
        (["+trainer.log_every_n_steps=10"], "trainer.log_every_n_steps must not be set here, got 10: every step is logged"),
        (["trainer.accelerator=tpu"], "trainer.accelerator must be one of auto, cpu, gpu, cuda, got 'tpu'"),
        (["ppo.optimizer._target_=adamw"], "must be the import path of a class or function, got 'adamw'"),
        (["ppo.optimizer._target_=json.dumps"], "ppo.optimizer._target_ must be the import path of an optimizer"),
        (["model.path=x"], "model.path must be null where model.architecture has a shape of its own"),
        (["+trainer.acelerator=cpu"], "did you mean accelerator?"),
        (["model.architecture.hiden_size=3"], "model.architecture.hiden_size must be a parameter of LlamaConfig"),
        (["model.architecture.model_type=lama"], "did you mean llama?"),
        (["mix.sources.world.args.sed=3"], "mix.sources.world.args.sed must be a parameter of"),
        (["mix.sources.world.target=a.b.C"], "mix.sources.world.target must be the import path of a class, got 'a.b.C'"),
        (["+callbacks.mine._target_=a.b.C"], "callbacks.mine._target_ must be the import path"),
        (["+callbacks.mine.x=1"], "callbacks.mine._target_ must be the import path of a class, got ['x']"),
        # wrong type
        (["ppo.kl_coef=abc"], "ppo.kl_coef must be a number, got 'abc'"),
        (["ppo.iterations=1.5"], "ppo.iterations must be an integer, got '1.5'"),
        (["ppo.whiten_rewards=maybe"], "ppo.whiten_rewards must be true or false, got 'maybe'"),
        (["ppo.kl_coef=null"], "ppo.kl_coef must not be null"),
        (["mix.sources.mine.limit=x"], "mix.sources.mine.limit must be an integer, got 'x'"),
        (["sft.optimizer.lr=fast"], "sft.optimizer.lr must be a number, got 'fast'"),
        # out of range
        (["ppo.kl_coef=-0.1"], "ppo.kl_coef must be >= 0, got -0.1"),
        (["ppo.schedule.name=spiral"], "ppo.schedule.name must be one of cosine, linear, constant, got 'spiral'"),
        (["sft.optimizer.lr=0"], "sft.optimizer.lr must be > 0, got 0"),
        (["seed=-1"], "seed must be >= 0, got -1"),
        (["task=pipelin"], "task must be one of"),
        (["mix.weights.x=1"], "mix.weights.x must be one of ['world']"),
        # between keys
        (["ppo.minibatch_size=50"], "ppo.minibatch_size must be a divisor of ppo.episodes_per_iteration=128, got 50"),
        (["ppo.max_response_tokens=100", "ppo.max_prompt_tokens=96", "model.context_length=128"], "must be <= model.context_length=128, got 196"),
        (["ppo.ratio_spike=1"], "ppo.ratio_spike must be null or > 1, got 1"),
        (["ppo.missing_eos=keep", "ppo.missing_eos_score=-2"], "must be left alone where ppo.missing_eos is keep, got -2"),
        (["ppo.adaptive_kl.enabled=true", "ppo.kl_coef=0"], "ppo.kl_coef must be > 0 where ppo.adaptive_kl.enabled"),
        (["ppo.critic_warmup_iterations=2", "strategy=deepspeed_zero2", "trainer.devices=2"], "ppo.critic_warmup_iterations must be 0 where strategy=deepspeed_zero2"),
        (["ppo.critic_warmup_iterations=20"], "ppo.critic_warmup_iterations must be < ppo.iterations=20, got 20"),
        (["ppo.ptx.coef=1", "ppo.ptx.examples_per_episode=0.003"], "in each of an iteration's 2 minibatches"),
        (["mix.sources.mine.limit=3"], "mix.sources.mine must have one of path, hub and target, got none"),
        (["mix.sources.world.path=x"], "mix.sources.world must have one of path, hub and target, got path and target"),
        (["+callbacks.x._target_=EarlyStopping"], "callbacks.x._target_ must be the import path of a class"),
        (["reward_source=function", "reward_source.parts.function.target=tests.rewards.mine.words", "+reward_source.parts.function.args.each=${oc.env:HOME}"], "reward_source.parts.function.args.each must not come from the environment"),
        # not this node's business
        (["+trainer.max_steps=5"], "trainer.max_steps must not be set here, got 5: ppo.iterations"),
        (["+trainer.gradient_clip_val=1"], "use <stage>.grad_clip"),
        (["+trainer.accumulate_grad_batches=2"], "use <stage>.micro_batch_size"),
        # missing, interpolated, unreadable
        (["model=hf"], "model.path must be a hub id or folder"),
        (["mix.name=???"], "mix.name must be given, got nothing"),
        (["ppo.kl_coef=${nope}"], "ppo.kl_coef must refer to a key that exists"),
        (["ppo.kl_coef"], "'ppo.kl_coef' must be KEY=VALUE"),
        (["trainer.devices=x=y"], "'trainer.devices=x=y' must be KEY=VALUE"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line_with_the_key(overrides: list[str], expected: str) -> None:
    assert expected in complaint(*overrides)


def test_owned_trainer_keys_are_all_keys_of_the_trainer() -> None:
    from rlhf_lightning.binding import OWNED_TRAINER_KEYS

    assert set(OWNED_TRAINER_KEYS) <= set(signature("lightning.pytorch.Trainer").parameters)


def test_signatures_follow_re_exports_and_bases_without_importing() -> None:
    # AdamW lives in torch/optim/adamw.py; GPT2 renames n_embd to hidden_size
    assert {"lr", "betas", "weight_decay"} <= set(signature("torch.optim.AdamW").parameters)
    assert "dirpath" in signature("lightning.pytorch.callbacks.ModelCheckpoint").parameters
    found = config_fields("gpt2")
    assert found is not None
    assert {"n_embd", "hidden_size", "eos_token_id"} <= set(found[1].parameters)
    assert config_fields("no_such_model") is None


def test_a_signature_that_cannot_be_read_is_imported() -> None:
    assert signature("builtins.sorted").open or "key" in signature("builtins.sorted").parameters
    with pytest.raises(LookupError):
        signature("rlhf_lightning.nothing.Here")


def test_defaults_diff_names_exactly_what_was_changed() -> None:
    root = checked("ppo.kl_coef=0.3", "seed=3", "+sft.optimizer.fused=false")
    assert compose.defaults_diff(root) == {
        "seed": (0, 3),
        "sft.optimizer.fused": (None, False),
        "ppo.kl_coef": (compose.default_root().ppo.kl_coef, 0.3),
    }
    assert compose.defaults_diff(checked()) == {}


def test_a_saved_config_loads_as_the_same_tree(tmp_path: Path) -> None:
    root = checked("ppo=instructgpt", "model@reward.model=small", "mix.sources.mine.path=a.jsonl")
    (tmp_path / "config.yaml").write_text(compose.saved_config(root))
    assert compose.load_saved(tmp_path / "config.yaml") == root
    odd = replace(root, prompt="pay ${amount} or \\${that} in ${")
    (tmp_path / "config.yaml").write_text(compose.saved_config(odd))
    assert compose.load_saved(tmp_path / "config.yaml") == odd
    with pytest.raises(UserError, match=r"ppo\.kl_coeff"):
        (tmp_path / "config.yaml").write_text(
            compose.saved_config(root).replace("kl_coef", "kl_coeff")
        )
        compose.load_saved(tmp_path / "config.yaml")


def test_build_calls_the_target_and_passes_objects_through() -> None:
    marker = object()
    node = {"_target_": "builtins.dict", "a": 1, "b": {"c": [2]}}
    assert compose.build(node, a=marker) == {"a": marker, "b": {"c": [2]}}
    with pytest.raises(UserError, match=r"cannot be built from \['nope'\]"):
        compose.build({"_target_": "collections.Counter.fromkeys", "nope": 1})
    with pytest.raises(
        UserError, match=r"built from \['eps', 'params'\]: Invalid epsilon value: -1"
    ):
        compose.build(
            {"_target_": "torch.optim.AdamW", "eps": -1}, params=[torch.nn.Parameter(torch.ones(1))]
        )


def test_a_tree_without_the_schema_is_refused() -> None:
    with pytest.raises(UserError, match="defaults must hold"):
        compose.to_root(OmegaConf.create({"task": "ppo"}))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["lora=default", "ppo.lora.rank=0"], "ppo.lora.rank must be >= 1, got 0"),
        (["lora=default", "sft.lora.alpha=0"], "sft.lora.alpha must be > 0, got 0.0"),
        (["lora=default", "reward.lora.dropout=1"], "reward.lora.dropout must be in [0, 1), got 1.0"),
        (["lora=default", "reward.lora.targets=''"], "reward.lora.targets must be all-linear or layer names, got ''"),
        (["lora=default", "reward.lora.last_blocks=0"], "reward.lora.last_blocks must be >= 1 or null, got 0"),
        (["lora=default", "sft.lora.rank=0", "ppo.lora.rank=0"], "sft.lora.rank must be >= 1, got 0"),
        (["lora=default", "ppo.lora.dropout=0.1"], "ppo.lora.dropout must be 0 (the ratio would not be one), got 0.1"),
        (["ppo.lora.rank=8"], "ppo.lora must be filled (adapter@ppo.lora=lora) where ppo.lora.rank is given, got null"),
        (["reward.model.vocab_size=8"], "reward.model must be filled (model@reward.model=NAME) where reward.model.vocab_size is given, got null"),
        (["ppo.value=both"], "ppo.value must be one of auto, separate, adapter, shared, got 'both'"),
        (["ppo.value=adapter"], "ppo.value must be separate or shared where ppo.lora is null, got 'adapter'"),
        (["ppo.advantage=grpo"], "ppo.advantage must be one of gae, rloo, got 'grpo'"),
        (["ppo.advantage=rloo"], "ppo.samples_per_prompt must be >= 2 where ppo.advantage is rloo, got 1"),
        (
            ["+reward_source.parts.mine={kind: learned, end_with_eos: true}", "~reward_source.parts.learned", "model.context_length=144", "ppo.max_response_tokens=40"],
            "reward_source.parts.mine.end_with_eos must be false where the reward model's context_length < 145 (prompt, response, EOS), got True",
        ),
        (["sft.max_reply_tokens=0"], "sft.max_reply_tokens must be null or >= 1, got 0"),
        (["pretrain.max_reply_tokens=9"], "pretrain.max_reply_tokens must be null (raw text has no replies), got 9"),
        (["ppo.share_prompt=true"], "ppo.share_prompt must be false where ppo.advantage is gae, got True"),
        (
            [*RLOO, "ppo.share_prompt=true", "ppo.micro_batch_size=30"],
            "ppo.micro_batch_size must be a multiple of ppo.samples_per_prompt=4 where ppo.share_prompt is true, got 30",
        ),
        (
            [*RLOO, "ppo.share_prompt=true", "strategy=fsdp2", "trainer.devices=2"],
            "ppo.share_prompt must be false where strategy=fsdp2 and ppo.lora is null (all gradients would be whole at once), got True",
        ),
        (
            [*RLOO, "ppo.share_prompt=true", "model.gradient_checkpointing=true"],
            "ppo.share_prompt must be false where model.gradient_checkpointing is true, got True",
        ),
        (["ppo.samples_per_prompt=0"], "ppo.samples_per_prompt must be >= 1, got 0"),
        (["ppo.stop_at_kl_window=4"], "ppo.stop_at_kl_window must be 1 where ppo.stop_at_kl is null, got 4"),
        (["ppo.stop_at_kl=9", "ppo.stop_at_kl_window=0"], "ppo.stop_at_kl_window must be >= 1, got 0"),
        (["ppo.samples_per_prompt=3"], "ppo.samples_per_prompt must be a divisor of ppo.episodes_per_iteration=128, got 3"),
    ],
)  # fmt: skip
def test_settings_of_adapters_values_and_advantages_name_their_whole_key(
    overrides: list[str], expected: str
) -> None:
    assert complaint(*overrides) == expected


def test_looking_at_runs_calls_nothing_of_a_config() -> None:
    """A saved config of somebody else's would run what it likes."""
    function = ["reward_source=function", "reward_source.parts.function.target=tests.nowhere.f"]
    assert compose.check(compose.compose(["task=runs", *function])).task == "runs"
    with pytest.raises(UserError, match=r"^reward_source.parts.function.target must be"):
        compose.check(compose.compose(["task=ppo", *function]))


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("ppo", ["model.context_length=100", "sft.max_length=100"]),
        ("reward", ["model.context_length=100", "sft.max_length=100"]),
        ("evaluate", ["model.context_length=100", "sft.max_length=100"]),
        ("sft", ["sft.max_length=200", "ppo.max_prompt_tokens=20"]),
        ("ppo", [*RLOO, "ppo.share_prompt=true", "model.gradient_checkpointing=true"]),
        ("ppo", ["strategy=deepspeed_zero3", "trainer.devices=2", "ppo.ema_decay=0.9"]),
    ],
)
def test_settings_are_asked_of_the_stages_that_run(stage: str, overrides: list[str]) -> None:
    """Of another stage's lengths and options nothing is asked; a pipeline runs them all."""
    other = "pretrain" if stage == "sft" else "sft"
    assert compose.check(compose.compose([f"task={other}", *overrides])).task == other
    for task in (stage, "pipeline"):
        with pytest.raises(UserError):
            compose.check(compose.compose([f"task={task}", *overrides]))
