import json
import subprocess
import sys
import time

import pytest

from rlhf_lightning.data.encode import (
    encode_completion,
    encode_demonstration,
    encode_prompt,
)
from rlhf_lightning.data.tokenizer import (
    SPECIAL_TOKENS,
    prepare_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
    turn_end,
)
from tests.data.conftest import TEXTS

ANY_TEXT = [
    "Grüße, 世界! 🦦👩‍👩‍👧",
    "tabs\t, \r\n line ends \n\n and  spaces  ",
    "".join(map(chr, range(1, 256))),
    "e\u0301 is not \u00e9",
    "\U0010ffff\u200f",
]


@pytest.mark.parametrize("text", ANY_TEXT)
def test_any_unicode_text_makes_the_round_trip(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert ids == tokenizer.encode(text)  # nothing is added by default


def test_special_tokens_have_fixed_ids_and_pad_is_not_eos(tokenizer):
    assert tuple(tokenizer.convert_ids_to_tokens(range(6))) == SPECIAL_TOKENS
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert tokenizer.unk_token is None
    assert len(tokenizer) == 290


def test_the_template_marks_every_turn(tokenizer):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|begin|><|user|>hi<|end|><|assistant|>yo<|end|>"
    text = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert text == "<|begin|><|user|>hi<|end|><|assistant|>"


def test_the_same_texts_give_the_same_tokenizer_in_another_process(tokenizer):
    code = (
        "from tests.data.conftest import TEXTS\n"
        "from rlhf_lightning.data.tokenizer import train_tokenizer, tokenizer_fingerprint\n"
        "print(tokenizer_fingerprint(train_tokenizer(iter(TEXTS * 20), vocab_size=290)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split()[-1] == tokenizer_fingerprint(tokenizer)


def test_the_fingerprint_of_a_saved_folder_is_that_of_the_tokenizer(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    fingerprint = tokenizer_fingerprint(tokenizer)
    assert tokenizer_fingerprint(tmp_path) == fingerprint
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    loaded(["a", "b b b"], padding=True)  # leaves padding set in the backend
    assert tokenizer_fingerprint(loaded) == fingerprint


def test_the_fingerprint_tells_vocabulary_and_template_apart(tokenizer):
    other = train_tokenizer(iter(TEXTS * 20), vocab_size=280)
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(tokenizer)
    same = train_tokenizer(iter(TEXTS * 20), vocab_size=290)
    same.chat_template = "{{ messages }}"
    assert tokenizer_fingerprint(same) != tokenizer_fingerprint(tokenizer)


def bare(**tokens):
    """A tokenizer like a base model's: <|endoftext|> only, no pad, no template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)


def test_a_base_tokenizer_gets_a_pad_token_and_a_template():
    tokenizer = bare(
        eos_token="<|endoftext|>", bos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    assert prepare_tokenizer(tokenizer) == 1
    assert tokenizer.pad_token_id == len(tokenizer) - 1 != tokenizer.eos_token_id
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    assert (
        tokenizer.apply_chat_template(messages, tokenize=False)
        == "<|endoftext|>User:\nhi\n\nAssistant:\nyo<|endoftext|>\n\n"
    )
    assert prepare_tokenizer(tokenizer) == 0


def test_a_pad_token_that_is_there_already_is_used():
    tokenizer = bare(eos_token="<|im_end|>", pad_token="<|im_end|>")
    assert prepare_tokenizer(tokenizer) == 0
    assert tokenizer.pad_token == "<|endoftext|>"


def test_a_tokenizer_without_eos_gets_one():
    tokenizer = bare()
    assert prepare_tokenizer(tokenizer) == 1  # <|end|>; the pad token is <|endoftext|>
    assert tokenizer.eos_token == "<|end|>"


def test_the_built_in_tokenizer_needs_nothing(tokenizer):
    assert prepare_tokenizer(tokenizer) == 0


def raw_folder(folder, *, config=None, model_type=None, **tokens):
    """A folder as others leave it; `config` is what tokenizer_config.json says, word for word."""
    bare(**tokens).save_pretrained(folder)
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if model_type is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))


TEXT_END = {"content": "<|endoftext|>", "lstrip": False, "rstrip": False, "normalized": False}
RAW = {
    "no pad token": {"eos_token": "<|endoftext|>"},
    "pad is eos": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    "pad in the vocabulary": {"eos_token": "<|im_end|>", "bos_token": "<|im_end|>"},
    "a pad that is eos beside a known one": {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
    "no eos": {},
    "a template of its own": {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": "{{ messages }}",
    },
    "tokens that the vocabulary lacks": {
        "config": {"eos_token": "</s>", "mask_token": "<mask>", "additional_special_tokens": ["<x>"]}
    },
    "an added token in the config alone": {
        "config": {"eos_token": "<|im_end|>", "added_tokens_decoder": {"900": TEXT_END | {"content": "<y>"}}}
    },
    "several templates": {
        "config": {"eos_token": "<|im_end|>", "chat_template": [{"name": "default", "template": "a"}, {"name": "tool", "template": "b"}]}
    },
    "tokens as objects": {"config": {"eos_token": TEXT_END | {"__type": "AddedToken"}}},
    "what GPT-2 leaves unsaid": {"config": {}, "model_type": "gpt2"},
    "what GPT-NeoX leaves unsaid": {"config": {"tokenizer_class": "GPTNeoXTokenizerFast"}},
    "what Qwen3 leaves unsaid": {"config": {"eos_token": "<|im_end|>"}, "model_type": "qwen3"},
    "no tokenizer_config.json": {"config": {}},
    "turns that end with another token than EOS": {
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "chat_template": "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}<|im_end|>\n{% endfor %}",
    },
}  # fmt: skip


@pytest.mark.parametrize("case", RAW)
def test_the_fingerprint_of_a_folder_of_other_making_is_that_of_the_prepared_tokenizer(
    tmp_path, case
):
    from transformers import AutoTokenizer

    raw, trained = tmp_path / "raw", tmp_path / "trained"
    raw_folder(raw, **RAW[case])
    if case.startswith("no tokenizer_config"):
        (raw / "tokenizer_config.json").unlink()
    loaded = AutoTokenizer.from_pretrained(raw)
    prepare_tokenizer(loaded)
    fingerprint = tokenizer_fingerprint(raw)
    assert fingerprint == tokenizer_fingerprint(loaded)
    loaded.save_pretrained(trained)  # as an artifact has it
    assert fingerprint == tokenizer_fingerprint(trained)


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ENDS = {
    CHATML: "<|im_end|>",
    CHATML.replace("\n", "\\n"): "<|im_end|>",
    "{% for m in messages %}{{ m.content }} {{ eos_token }}{% endfor %}": "<|endoftext|>",
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}": None,  # none
    "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}<|im_start|>": None,  # opens
    "{% if messages[0].role != 'system' %}{{ 1 / 0 }}{% endif %}{{ messages[2].content }}<|im_end|>": "<|im_end|>",
    "{{ raise_exception('no') }}": None,
    "{{ messages[7].content }}": None,
    "{% broken": None,
}


@pytest.mark.parametrize("template", [*ENDS, None])
def test_the_token_that_ends_a_turn_is_the_one_behind_an_answer(template):
    strings = ["<|im_start|>", "<|im_end|>", "<|im_end|>x", "<|endoftext|>"]
    special = {"bos_token": None, "eos_token": "<|endoftext|>"}
    expected = ENDS.get(template)
    assert turn_end(template, special, strings) == expected
    if template is not None:
        assert turn_end({"tool": "", "default": template}, special, strings) == expected


def test_a_response_ends_where_the_chat_template_ends_a_turn():
    tokenizer = bare(eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    assert prepare_tokenizer(tokenizer) == 0
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    learnt = encode_demonstration(tokenizer, said, 100)
    assert learnt.ids == [
        *encode_prompt_and(tokenizer, said[:1]),
        *encode_completion(tokenizer, "yo"),
    ]
    assert learnt.ids[-1] == tokenizer.eos_token_id


def encode_prompt_and(tokenizer, messages):
    """This template has no generation prompt: the answer's head is the policy's to write, here it is given."""
    head = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    return [*encode_prompt(tokenizer, messages), *head]


@pytest.mark.parametrize("extra", [["<x>"], {"image_token": "<x>"}, {"image_token": "<|im_end|>"}])
@pytest.mark.parametrize("special", [True, False])
def test_folder_and_tokenizer_agree_on_what_is_special(tmp_path, extra, special):
    from transformers import AutoTokenizer

    config = {
        "eos_token": "<|endoftext|>",
        "extra_special_tokens": extra,
        "chat_template": CHATML,
        "added_tokens_decoder": {"1": TEXT_END | {"content": "<|im_end|>", "special": special}},
    }
    raw_folder(tmp_path, config=config)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    prepare_tokenizer(loaded)
    assert tokenizer_fingerprint(tmp_path) == tokenizer_fingerprint(loaded)


def test_special_tokens_of_an_older_folder_are_read_where_they_lie(tmp_path):
    from transformers import AutoTokenizer

    raw_folder(tmp_path, config={"model_max_length": 64})
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": TEXT_END, "pad_token": "<|im_end|>"})
    )
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.eos_token, loaded.pad_token) == ("<|endoftext|>", "<|im_end|>")
    prepare_tokenizer(loaded)
    assert tokenizer_fingerprint(tmp_path) == tokenizer_fingerprint(loaded)


def test_folders_of_other_making_that_differ_have_different_fingerprints(tmp_path):
    cases = ["no pad token", "pad in the vocabulary", "no eos", "a template of its own"]
    for i, case in enumerate(cases):
        raw_folder(tmp_path / str(i), **RAW[case])
    assert len({tokenizer_fingerprint(tmp_path / str(i)) for i in range(4)}) == 4


def test_scores_of_a_unigram_vocabulary_count(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    for name, score in (("a", -1.0), ("b", -2.0)):
        backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("x", score)], unk_id=0))
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(
            tmp_path / name
        )
    assert tokenizer_fingerprint(tmp_path / "a") != tokenizer_fingerprint(tmp_path / "b")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "a")
    prepare_tokenizer(loaded)
    assert tokenizer_fingerprint(tmp_path / "a") == tokenizer_fingerprint(loaded)


def test_a_word_without_end_takes_no_time_and_a_script_without_spaces_loses_nothing():
    began = time.monotonic()
    train_tokenizer(["ab" * 150_000, " " * 100_000, "=" * 100_000], vocab_size=300)
    assert time.monotonic() - began < 5
    said = "你好，世界。" * 400 + "猫很好。" * 3
    found = train_tokenizer([said], vocab_size=400)
    # of the last sentences too
    assert len(found("猫", add_special_tokens=False)["input_ids"]) < len("猫".encode())
