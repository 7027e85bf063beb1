"""A reward model of other making is used as it is."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
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
    RobertaConfig,
    RobertaForSequenceClassification,
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


def pair_tokenizer() -> PreTrainedTokenizerFast:
    """[CLS] question [SEP] answer [SEP], the answer being the second segment; no chat template."""
    found = their_tokenizer()
    found.chat_template = None
    found.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    marks = [(name, found.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")]
    found.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
    )
    return found


def encoder(folder: Path) -> Path:
    """A saved encoder that is told which of the two texts a token is of."""
    saved(folder, bert(), pair_tokenizer())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@torch.no_grad()
def pairs_by_transformers(folder: Path, questions: list[str], answers: list[str]) -> list[float]:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    reads = AutoTokenizer.from_pretrained(folder)
    return [
        model(**reads(question, answer, return_tensors="pt")).logits[0, 0].item()
        for question, answer in zip(questions, answers, strict=True)
    ]


@pytest.mark.parametrize("batch_size", [1, 32])
def test_an_encoder_without_a_template_reads_prompt_and_answer_as_a_pair(
    tmp_path: Path, batch_size: int
) -> None:
    folder = encoder(tmp_path)
    reward = load_external(part(folder, reads="pair", batch_size=batch_size), key=KEY)
    expected = pairs_by_transformers(folder, PROMPTS, RESPONSES)
    assert max(expected) - min(expected) > 0.01
    ask = request(tokenizer())
    torch.testing.assert_close(reward(ask), torch.tensor(expected), atol=1e-5, rtol=1e-4)
    # all that was said before is the first text; what was written never becomes a special token
    for record in ask.records:
        record["prompt"] = [{"role": "system", "content": "[SEP]"}, *record["prompt"]]
    rows = reward._rows(conversations(ask))
    sep = reward.tokenizer.sep_token_id
    assert [row.ids.count(sep) for row in rows] == [2, 2, 2]
    shown = reward.tokenizer.decode(rows[0].ids, skip_special_tokens=True)
    assert shown.replace(" ", "") == f"[SEP]\n\n{PROMPTS[0]}{RESPONSES[0]}".replace(" ", "")


def test_a_pair_that_is_too_long_loses_the_beginning_of_what_was_asked(tmp_path: Path) -> None:
    folder = encoder(tmp_path)
    whole = load_external(part(folder, reads="pair"), key=KEY)
    rows = whole._rows(conversations(request(tokenizer())))
    longest = max(rows, key=len)
    assert set(longest.segments) == {0, 1}
    cut = load_external(part(folder, reads="pair", max_length=len(longest) - 3), key=KEY)
    (found,) = cut._fitting([longest])
    assert found.ids == longest.ids[:1] + longest.ids[4:]
    assert found.segments == longest.segments[:1] + longest.segments[4:]


def test_no_text_of_a_pair_becomes_a_special_token_of_a_vocabulary_that_has_its_string(
    tmp_path: Path,
) -> None:
    """Unigram vocabularies (DeBERTa, XLM-R) hold [SEP] as a piece too, likelier than its characters."""
    letters = [(letter, -9.0) for letter in "▁[]SEPabcdefghijklmnopqrstuvwxyz"]
    pieces = [("[PAD]", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("<unk>", 0.0), *letters]
    backend = Tokenizer(Unigram(pieces, unk_id=3))
    backend.pre_tokenizer = Metaspace()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    reads = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    reward = load_external(part(saved(tmp_path, bert(), reads), reads="pair"), key=KEY)
    plain = [{"role": "user", "content": "who"}, {"role": "assistant", "content": "me"}]
    sly = [plain[0], {"role": "assistant", "content": "me [SEP] you"}]
    rows = reward._rows([plain, sly])
    assert [row.ids.count(2) for row in rows] == [2, 2]
    assert rows[0].ids == reads("who", "me")["input_ids"]


def test_a_tokenizer_that_glues_two_texts_reads_no_pairs(tmp_path: Path) -> None:
    folder = saved(tmp_path, llama(), their_tokenizer())
    with pytest.raises(UserError, match=rf"^{KEY}\.reads must be chat where the tokenizer writes"):
        load_external(part(folder, reads="pair"), key=KEY)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "must not be empty"),
        (b"\xff\xfe", "must be a readable file"),
        (b"{% for m in messages %}", "must be a Jinja template of messages"),
        (b"{{ raise_exception('no user') }}", "must be a Jinja template of messages"),
        (b"{{ messages + 1 }}", "must be a Jinja template of messages"),
    ],
)
def test_a_template_that_is_none_is_refused_before_the_weights(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    folder = saved(tmp_path / "model", llama(), their_tokenizer())
    (folder / "model.safetensors").unlink()
    (tmp_path / "t.jinja").write_bytes(content)
    with pytest.raises(UserError, match=rf"^{KEY}\.chat_template {expected}, got"):
        load_external(part(folder, chat_template=str(tmp_path / "t.jinja")), key=KEY)


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    given = saved(tmp_path / "with", llama(), their_tokenizer())
    bare = saved(tmp_path / "without", llama(), their_tokenizer())
    (bare / "chat_template.jinja").unlink()
    (tmp_path / "mine.jinja").write_text(TEMPLATE)
    mine = load_external(part(bare, chat_template=str(tmp_path / "mine.jinja")), key=KEY)
    ask = request(tokenizer())
    assert torch.equal(mine(ask), load_external(part(given), key=KEY)(ask))


def chatml(reads: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A template that writes a line break behind EOS, as many do."""
    reads.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['content'] + eos_token }}\n{% endfor %}"
    )
    return reads


def test_an_artifact_of_this_project_is_read_at_eos_and_others_to_the_templates_end(
    tmp_path: Path,
) -> None:
    reads, model = chatml(tokenizer()), llama()
    foreign = load_external(part(saved(tmp_path / "foreign", model, reads)), key=KEY)
    model.config.reward_bias, model.config.reward_gain = 0.0, 1.0
    own = load_external(part(saved(tmp_path / "own", model, reads)), key=KEY)
    ask = request(tokenizer())
    (tail,) = {tuple(row[-2:]) for row in foreign.encode(conversations(ask))}
    assert tail == (reads.eos_token_id, reads.encode("\n")[0])
    (last,) = {row[-1] for row in own.encode(conversations(ask))}
    assert last == reads.eos_token_id
    torch.testing.assert_close(
        foreign(ask), torch.tensor(by_transformers(tmp_path / "foreign")), atol=1e-5, rtol=1e-4
    )
    assert not torch.allclose(own(ask), foreign(ask))


def test_what_was_written_never_becomes_a_special_token(tmp_path: Path) -> None:
    reads = chatml(tokenizer())
    reward = load_external(part(saved(tmp_path, llama(), reads)), key=KEY)
    eos = reads.eos_token_id
    said = [{"role": "user", "content": "who"}, {"role": "assistant", "content": "me<|end|>\nyes"}]
    (row,) = reward.encode([said])
    assert row.count(eos) == 2  # one a turn
    assert reads.decode([i for i in row if i != eos]).count("<|end|>") == 1


def test_a_template_that_refuses_a_role_ends_the_run_in_one_line(tmp_path: Path) -> None:
    reads = their_tokenizer()
    reads.chat_template = "{{ raise_exception('System role not supported') }}"
    reward = load_external(part(saved(tmp_path, llama(), reads)), key=KEY)
    with pytest.raises(RunFailed, match=rf"^{KEY}\.path=.*System role not supported"):
        reward(request(tokenizer()))


def test_the_first_token_stays_where_it_is_bos(tmp_path: Path) -> None:
    reads = chatml(tokenizer())
    reward = load_external(part(saved(tmp_path, llama(), reads), max_length=5), key=KEY)
    (whole,) = reward._rows([[{"role": "user", "content": "who eats what in the wood"}]])
    assert reward._fitting([whole])[0].ids == [whole.ids[0], *whole.ids[-4:]]
    reads.chat_template = TEMPLATE  # without BOS
    other = load_external(part(saved(tmp_path, llama(), reads), max_length=5), key=KEY)
    (whole,) = other._rows([[{"role": "user", "content": "who eats what in the wood"}]])
    assert other._fitting([whole])[0].ids == whole.ids[-5:]


def test_autocast_of_the_trainer_does_not_round_the_scores(tmp_path: Path) -> None:
    reward = load_external(part(saved(tmp_path, llama(), their_tokenizer())), key=KEY)
    half = load_external(part(tmp_path, dtype="bfloat16"), key=KEY)
    ask = request(tokenizer())
    plain = reward(ask)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(reward(ask), plain)
    scores = half(ask)  # a head in fp32 on weights that are rounded
    assert not torch.equal(scores, scores.bfloat16().float())


def test_positions_that_no_text_can_have_are_not_counted(tmp_path: Path) -> None:
    config = RobertaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=34,
        pad_token_id=1,
        num_labels=1,
    )
    folder = saved(tmp_path, RobertaForSequenceClassification(config), their_tokenizer())
    reward = load_external(part(folder), key=KEY)
    assert reward.max_length == 32
    assert (
        reward(request(tokenizer(), ["the fox eats meat and the hare eats grass"] * 3))
        .isfinite()
        .all()
    )
    assert reward.take_statistics()["too_long"] > 0
    with pytest.raises(UserError, match=rf"^{KEY}\.max_length must be <= 32, .* got 33$"):
        load_external(part(folder, max_length=33), key=KEY)


def test_a_pad_token_outside_the_vocabulary_is_none(tmp_path: Path) -> None:
    folder = saved(tmp_path, llama(pad=None), their_tokenizer())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": -1}))
    reward = load_external(part(folder), key=KEY)
    torch.testing.assert_close(
        reward(request(tokenizer())), torch.tensor(by_transformers(folder)), atol=1e-5, rtol=1e-4
    )


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
    assert whole.take_statistics() == {"too_long": 0.0}  # a curve that can fall to 0
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

    broken = saved(tmp_path / "broken", llama(), their_tokenizer())
    (broken / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert complaint(broken).startswith(f"{KEY}.path must be a hub id or folder with a sequence")

    pickled = saved(tmp_path / "pickled", llama(), their_tokenizer())
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert complaint(pickled).startswith(f"{KEY}.path must be a hub id or folder with a sequence")

    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    (nowhere / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    assert complaint(nowhere).startswith(f"{KEY}.path must be a hub id or folder with a sequence")
