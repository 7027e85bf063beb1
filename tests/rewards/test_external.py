"""A reward model of other making is used as it is."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from rlhf_lightning.config import RewardPartConfig
from rlhf_lightning.data.tokenizer import train_tokenizer
from rlhf_lightning.errors import RunFailed, UserError
from rlhf_lightning.rewards.external import ExternalReward, load_external
from tests.rewards.requests import PROMPTS, RESPONSES, request, tokenizer

KEY = "reward_source.parts.model"
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"


def their_tokenizer() -> PreTrainedTokenizerFast:
    """Another vocabulary and another template than the policy's."""
    found = train_tokenizer(["role user assistant"] * 3, vocab_size=280)
    found.chat_template = TEMPLATE
    return found


def llama(labels: int = 1, pad: int | None = 0) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=pad,
        num_labels=labels,
        initializer_range=0.5,
    )
    return LlamaForSequenceClassification(config)


def bert() -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        num_labels=1,
        initializer_range=0.5,
    )
    return BertForSequenceClassification(config)


def saved(folder: Path, model: PreTrainedModel, reads: PreTrainedTokenizerFast) -> Path:
    model.save_pretrained(folder)
    reads.save_pretrained(folder)
    return folder


def part(folder: Path, **changes: object) -> RewardPartConfig:
    return replace(RewardPartConfig(kind="model", path=str(folder)), **changes)


@torch.no_grad()
def by_transformers(folder: Path) -> list[float]:
    """One conversation at a time, rendered as the folder's own tokenizer says, no padding, no code of ours."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    reads = AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        messages = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": response},
        ]
        text = reads.apply_chat_template(messages, tokenize=False)
        ids = reads(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        found.append(model(input_ids=ids).logits[0, 0].item())
    return found


@pytest.mark.parametrize("kind", ["llama", "bert", "no pad token"])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_the_score_is_transformers_own_on_the_conversation_in_its_own_template(
    tmp_path: Path, kind: str, batch_size: int
) -> None:
    model = {"llama": llama, "bert": bert, "no pad token": lambda: llama(pad=None)}[kind]()
    folder = saved(tmp_path, model, their_tokenizer())
    reward = load_external(part(folder, batch_size=batch_size), key=KEY)
    expected = by_transformers(folder)
    assert max(expected) - min(expected) > 0.01
    torch.testing.assert_close(
        reward(request(tokenizer())), torch.tensor(expected), atol=1e-5, rtol=1e-4
    )
    assert not any(p.requires_grad for p in reward.parameters())


def test_with_the_policys_own_tokenizer_the_tokens_are_used_as_they_are(tmp_path: Path) -> None:
    ours = tokenizer()
    reward = load_external(part(saved(tmp_path, llama(), ours)), key=KEY)
    ask = request(ours)
    with torch.no_grad():
        rows = [torch.tensor([row]) for row in ask.rows]
        expected = [reward.model(input_ids=row).logits[0, 0] for row in rows]
    torch.testing.assert_close(reward(ask), torch.stack(expected), atol=1e-5, rtol=1e-4)
    # the sampled tokens count, even those that no text gives: here a response of two halves of words
    other = replace_tokens(ask)
    assert not torch.allclose(reward(other), reward(ask))


def replace_tokens(ask):
    return replace(ask, response_ids=ask.response_ids.flip(1))


def test_bias_and_gain_of_this_projects_artifacts_are_not_applied(tmp_path: Path) -> None:
    model = llama()
    plain = load_external(part(saved(tmp_path / "a", model, their_tokenizer())), key=KEY)
    model.config.reward_bias, model.config.reward_gain = 5.0, 3.0
    ours = load_external(part(saved(tmp_path / "b", model, their_tokenizer())), key=KEY)
    ask = request(tokenizer())
    assert torch.equal(plain(ask), ours(ask))


def test_what_is_too_long_loses_its_oldest_tokens_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved(tmp_path, llama(), their_tokenizer())
    whole = load_external(part(folder), key=KEY)
    ask = request(tokenizer())
    lengths = [len(row) for row in whole.encode([*conversations(ask)])]
    limit = sorted(lengths)[1]  # one of the three is longer
    cut = load_external(part(folder, max_length=limit), key=KEY)
    with caplog.at_level(logging.WARNING, logger="rlhf_lightning"):
        same = cut(ask) == whole(ask)
        cut(ask)
    assert same.tolist().count(False) == 1
    assert cut.take_statistics() == {"too_long": pytest.approx(1 / 3)}
    assert whole.take_statistics() == {}
    assert len(caplog.records) == 1  # said once
    strict = load_external(part(folder, max_length=limit, too_long="error"), key=KEY)
    with pytest.raises(
        RunFailed, match=rf"^{KEY}\.max_length={limit}: a conversation has {max(lengths)} tokens"
    ):
        strict(ask)


def conversations(ask):
    from rlhf_lightning.rewards.external import conversations as found

    return found(ask)


def test_the_context_is_what_config_and_tokenizer_say(tmp_path: Path) -> None:
    reads = their_tokenizer()
    assert ExternalReward(llama(), reads, part(tmp_path), key=KEY).max_length == 128
    reads.model_max_length = 40
    assert ExternalReward(llama(), reads, part(tmp_path), key=KEY).max_length == 40
    assert ExternalReward(llama(), reads, part(tmp_path, max_length=7), key=KEY).max_length == 7


def complaint(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_external(part(folder), key=KEY)
    return str(caught.value)


def test_folders_that_are_no_reward_model_are_refused(tmp_path: Path) -> None:
    two = saved(tmp_path / "two", llama(labels=2), their_tokenizer())
    assert complaint(two) == f"{KEY}.path must be a model with one label, got '{two}' with 2"

    bare = saved(tmp_path / "bare", llama(), their_tokenizer())
    (bare / "chat_template.jinja").unlink()
    assert "must have a tokenizer with a chat template" in complaint(bare)

    headless = tmp_path / "headless"
    config = llama().config
    saved(headless, LlamaForCausalLM(config), their_tokenizer())
    assert complaint(headless).endswith("without score.weight")

    pickled = saved(tmp_path / "pickled", llama(), their_tokenizer())
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert complaint(pickled).startswith(f"{KEY}.path must be a hub id or folder with a sequence")

    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    (nowhere / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    assert complaint(nowhere).startswith(f"{KEY}.path must be a hub id or folder with a sequence")
