"""The whole recipe on files and on a model folder that this project had no hand in."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.harness import only, rlhf_here

CONTEXT = 128
ADDENDS = range(16)


def questions() -> Iterator[tuple[str, int]]:
    for a in ADDENDS:
        for b in ADDENDS:
            yield f"What is {a} plus {b}?", a + b


def write_rows(folder: Path) -> Path:
    """256 sums as demonstrations, comparisons and prompts: one kind a file, three formats."""
    folder.mkdir()
    spoken, ranked = [], []
    with (folder / "prompts.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt"])
        for question, answer in questions():
            user = {"role": "user", "content": question}
            spoken.append(
                {"messages": [user, {"role": "assistant", "content": f"It is {answer}."}]}
            )
            completions = [f"It is {answer + 1}.", f"It is {answer}.", "No idea."]
            ranked.append({"prompt": [user], "completions": completions, "ranks": [1, 0, 2]})
            table.writerow([json.dumps([user])])
    (folder / "spoken.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in spoken))
    (folder / "ranked.json").write_text(json.dumps(ranked))
    return folder


def write_model(folder: Path) -> Path:
    """A tiny random Llama as others save theirs: no pad token, no chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet
    )
    backend.train_from_iterator((question for question, _ in questions()), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(backend.get_vocab()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("mine")
    return [
        f"outputs={folder / 'outputs'}",
        "mix=files",
        f"mix.sources.mine.path={write_rows(folder / 'rows')}",
        "mix.test_fraction=0.2",
        "mix.validation_fraction=0.1",
        "model=hf",
        f"model.path={write_model(folder / 'llama')}",
        f"model.context_length={CONTEXT}",
        "sft.max_length=128",
        "pretrain.max_length=128",
        "reward.completions=speakers",
        "ppo.max_prompt_tokens=64",
        "ppo.max_response_tokens=12",
        "reward.max_response_tokens=12",
        "evaluate.max_response_tokens=12",
        # adding a pad token to a vocabulary of others is the point; the sizes are toys
        "sft.examples=96",
    ]


def test_a_pipeline_on_files_from_a_model_folder(overrides: list[str], tmp_path: Path) -> None:
    metrics = rlhf_here(*overrides)
    outputs = Path(overrides[0].removeprefix("outputs="))
    # the model is pretrained by others
    assert sorted(p.name for p in outputs.iterdir()) == [
        "evaluate", "latest", "pipeline", "ppo", "reward", "sft",
    ]  # fmt: skip
    assert metrics["reward/completions"] == 3 * metrics["reward/prompts"]
    assert 0 <= metrics["reward/pairwise_accuracy"] <= 1
    assert metrics["ppo/episodes"] == 2 * 16
    for name in ("base", "sft", "ppo"):
        assert {f"{name}/reward_score", f"{name}/kl_k1", f"{name}/eos_rate"} <= metrics.keys()
        assert f"{name}/gold_score" not in metrics  # nobody knows the truth of files
    assert abs(metrics["sft/kl_k1"]) < 1e-3  # the reference is SFT itself
    assert abs(metrics["base/kl_k1"]) > 1e-3
    report = (only(outputs / "pipeline") / "report.html").read_text()
    assert "What is " in report and not re.search(r"\b(nan|inf)\b", report.split("</style>")[1])


def test_every_artifact_has_the_tokenizer_with_pad_and_template(overrides: list[str]) -> None:
    outputs = Path(overrides[0].removeprefix("outputs="))
    rlhf_here(*overrides)  # reused, or made if this test runs alone
    for task in ("sft", "reward", "ppo"):
        tokenizer = AutoTokenizer.from_pretrained(only(outputs / task) / "artifact")
        assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
        assert tokenizer.eos_token == "</s>" and tokenizer.chat_template


def test_pairs_alone_and_a_model_that_was_instructed_by_others(
    overrides: list[str], tmp_path: Path
) -> None:
    """The README's command: no SFT, both reward model and policy from the model's own weights."""
    pairs = [
        {"prompt": question, "chosen": f"It is {answer}.", "rejected": "No idea."}
        for question, answer in questions()
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    own = [o for o in overrides if not o.startswith(("outputs=", "mix.sources.", "sft."))]
    starts = ["reward.init.policy=none", "ppo.init.policy=none"]
    evaluated = ["evaluate.models.sft=none", "evaluate.models.base=skip"]
    mine = [f"mix.sources.mine.path={tmp_path / 'pairs.jsonl'}", f"outputs={tmp_path / 'outputs'}"]
    metrics = rlhf_here(*own, *mine, *starts, *evaluated)
    assert sorted(p.name for p in (tmp_path / "outputs").iterdir()) == [
        "evaluate", "latest", "pipeline", "ppo", "reward",
    ]  # fmt: skip
    assert abs(metrics["sft/kl_k1"]) < 1e-3 and metrics["ppo/episodes"] == 2 * 16
    assert not any(name.startswith("base/") for name in metrics)


def test_sft_from_the_models_own_weights(tmp_path: Path) -> None:
    # with random weights of the built-in size there is no pretraining to start from
    metrics = rlhf_here(f"outputs={tmp_path}", "task=sft", "sft.init.policy=none")
    assert metrics["sft/examples"] == 128
    identity = json.loads((only(tmp_path / "sft") / "identity.json").read_text())["identity"]
    assert identity["parents"] == {}
    assert not (tmp_path / "pretrain").exists()
    assert (only(tmp_path / "sft") / "artifact" / "model.safetensors").is_file()


def test_the_model_itself_fits_beside_a_reward_model_that_was_trained_from_it(
    overrides: list[str], tmp_path: Path
) -> None:
    """The folder has neither pad token nor template; the reward model's artifact has both."""
    outputs = Path(overrides[0].removeprefix("outputs="))
    if not (outputs / "reward").is_dir():  # run alone
        rlhf_here(*overrides)
    (model,) = (o.removeprefix("model.path=") for o in overrides if o.startswith("model.path="))
    metrics = rlhf_here(
        *overrides,
        "task=ppo",
        f"ppo.init.policy={model}",
        f"ppo.init.reward={only(outputs / 'reward')}",
        "ppo.iterations=1",
        f"run_dir={tmp_path / 'ppo'}",
    )
    assert metrics["ppo/episodes"] == 16
