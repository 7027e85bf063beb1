import random

import pytest
import torch

from rlhf_lightning.data import collate
from rlhf_lightning.data.collate import Encoded
from rlhf_lightning.data.tokenizer import prepare_tokenizer
from rlhf_lightning.errors import UserError
from tests.data.test_tokenizer import bare

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How big is the otter?"},
    {"role": "assistant", "content": "Small."},
    {"role": "user", "content": "And quick?"},
    {"role": "assistant", "content": "Yes 🦦."},
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def targets(tokenizer, encoded):
    """The texts of the stretches that are learnt."""
    runs, previous = [], False
    for token, learnt in zip(encoded.ids, encoded.loss_mask, strict=True):
        if learnt and not previous:
            runs.append([])
        if learnt:
            runs[-1].append(token)
        previous = learnt
    return [tokenizer.decode(run) for run in runs]


def test_only_assistant_turns_and_their_eos_are_learnt(tokenizer):
    encoded = collate.encode_demonstration(tokenizer, CONVERSATION, 200)
    assert targets(tokenizer, encoded) == ["Small.<|end|>", "Yes 🦦.<|end|>"]
    assert tokenizer.decode(encoded.ids) == tokenizer.apply_chat_template(
        CONVERSATION, tokenize=False
    )


def test_a_demonstration_is_its_prompt_and_completion_as_the_sampler_sees_them(tokenizer):
    encoded = collate.encode_demonstration(tokenizer, CONVERSATION, 200)
    prompt = collate.encode_prompt(tokenizer, CONVERSATION[:-1])
    assert encoded.ids == prompt + collate.encode_completion(tokenizer, "Yes 🦦.")


@pytest.mark.parametrize("count", [0, 1])
def test_a_chat_has_the_bos_that_its_template_writes_and_raw_text_has_one(tokenizer, count):
    """As in transformers: an artifact is prompted by `apply_chat_template` as it was trained."""
    bos, original = tokenizer.bos_token_id, tokenizer.chat_template
    try:
        if count == 0:
            tokenizer.chat_template = original.replace("{{ bos_token }}", "")
        prompt = collate.encode_prompt(tokenizer, CONVERSATION[:-1])
        for ids in (collate.encode_demonstration(tokenizer, CONVERSATION, 200).ids, prompt):
            assert ids.count(bos) == count
        rendered = tokenizer.apply_chat_template(
            CONVERSATION[:-1], tokenize=False, add_generation_prompt=True
        )
        assert prompt == tokenizer.encode(rendered, add_special_tokens=False)
        assert collate.encode_text(tokenizer, "hello", 50).ids.count(bos) == 1
    finally:
        tokenizer.chat_template = original


def test_what_chatml_puts_behind_eos_is_not_learnt():
    tokenizer = bare(eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    encoded = collate.encode_demonstration(tokenizer, CONVERSATION, 400)
    assert targets(tokenizer, encoded) == ["Small.<|im_end|>", "Yes 🦦.<|im_end|>"]
    assert encoded.ids[-1] == tokenizer.eos_token_id


def test_a_template_without_eos_gets_one_at_the_end():
    tokenizer = bare(eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "")
    encoded = collate.encode_demonstration(tokenizer, CONVERSATION, 400)
    assert encoded.ids[-1] == tokenizer.eos_token_id
    assert encoded.loss_mask[-1]


def test_the_default_template_works_for_training():
    tokenizer = bare(eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    prepare_tokenizer(tokenizer)
    encoded = collate.encode_demonstration(tokenizer, CONVERSATION, 400)
    assert targets(tokenizer, encoded) == ["Small.<|endoftext|>", "Yes 🦦.<|endoftext|>"]


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    original = tokenizer.chat_template
    tokenizer.chat_template = "{{ messages | length }}" + original
    try:
        with pytest.raises(
            UserError, match="chat_template must render a conversation as what came before"
        ):
            collate.encode_demonstration(tokenizer, CONVERSATION, 200)
    finally:
        tokenizer.chat_template = original


def test_text_learns_all_but_its_first_token(tokenizer):
    encoded = collate.encode_text(tokenizer, "the otter", 50)
    assert encoded.ids[0] == tokenizer.bos_token_id
    assert encoded.ids[-1] == tokenizer.eos_token_id
    assert encoded.loss_mask == [False] + [True] * (len(encoded.ids) - 1)


def test_what_is_too_long_is_none_and_never_cut(tokenizer):
    whole = len(collate.encode_text(tokenizer, "hello there", 50).ids)
    assert collate.encode_text(tokenizer, "hello there", whole) is not None
    assert collate.encode_text(tokenizer, "hello there", whole - 1) is None
    assert collate.encode_demonstration(tokenizer, CONVERSATION, 10) is None


def test_a_padding_call_elsewhere_changes_no_ids(tokenizer):
    before = collate.encode_completions(tokenizer, ["a", "hello there"])
    tokenizer(["a", "hello there"], padding=True, truncation=True, max_length=2)
    assert collate.encode_completions(tokenizer, ["a", "hello there"]) == before


def documents(lengths):
    return [Encoded([10 + i] * n, [False] + [True] * (n - 1)) for i, n in enumerate(lengths)]


def test_packing_keeps_every_document_whole_and_apart():
    rng = random.Random(0)
    given = documents([rng.randint(1, 16) for _ in range(40)])
    batch = collate.pack(given, 16, pad_id=0)
    assert batch.ids.shape[1] <= 16
    found = []
    for ids, mask, positions, number in zip(
        batch.ids, batch.loss_mask, batch.positions, batch.documents, strict=True
    ):
        for n in range(1, int(number.max()) + 1):
            here = (number == n).nonzero().flatten()
            assert (here.diff() == 1).all()
            assert positions[here].tolist() == list(range(len(here)))
            found.append((ids[here].tolist(), mask[here].tolist()))
        assert (ids[number == 0] == 0).all()
        assert not mask[number == 0].any()
    assert sorted(found) == sorted((d.ids, d.loss_mask) for d in given)
    assert batch.mask.equal(batch.documents > 0)


def test_packing_fills_rows_first_fit_longest_first():
    # 5+3, 4+4 fill two rows of 8; 2 opens the third
    batch = collate.pack(documents([3, 4, 2, 5, 4]), 8, pad_id=0)
    assert (batch.documents > 0).sum(1).tolist() == [8, 8, 2]
    assert batch.documents[0].tolist() == [1] * 5 + [2] * 3
    again = collate.pack(documents([3, 4, 2, 5, 4]), 8, pad_id=0)
    assert again.ids.equal(batch.ids)


def test_packing_nothing_gives_one_row_without_targets():
    batch = collate.pack([], 8, pad_id=7)
    assert batch.ids.tolist() == [[7]]
    assert not batch.loss_mask.any()
    assert not batch.mask.any()


def test_packing_refuses_a_document_longer_than_a_row():
    with pytest.raises(ValueError, match="at most 4 tokens, got 5"):
        collate.pack(documents([5]), 4, pad_id=0)


def test_prompts_are_padded_on_the_left():
    batch = collate.collate_prompts([[5, 6, 7], [8]], [{"a": 1}, {"b": 2}], pad_id=0)
    assert batch.ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch.mask.tolist() == [[True] * 3, [False, False, True]]
    assert batch.records == [{"a": 1}, {"b": 2}]


def test_comparisons_hold_all_pairs_of_each_prompt():
    items = [
        ([5], [[1], [2, 2], [3]], {"ranks": [0, 2, 1]}),
        ([6, 6], [[4], [5]], {"ranks": [0, 0]}),
        ([7], [[1], [2]], {"pairs": [[1, 0]]}),
    ]
    batch = collate.collate_comparisons(items, pad_id=0)
    assert batch.ids.tolist() == [
        [5, 1, 0],
        [5, 2, 2],
        [5, 3, 0],
        [6, 6, 4],
        [6, 6, 5],
        [7, 1, 0],
        [7, 2, 0],
    ]
    assert batch.mask.sum(1).tolist() == [2, 3, 2, 3, 3, 2, 2]
    assert batch.group.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert batch.pairs.tolist() == [[0, 1], [0, 2], [2, 1], [6, 5]]
    assert batch.weights.tolist() == pytest.approx([1 / 3] * 3 + [1])
    assert batch.margins.tolist() == [2, 1, 1, 1]
    assert batch.prompts == 2  # the second prompt is all tied


def test_comparisons_without_pairs_have_empty_pair_tensors():
    batch = collate.collate_comparisons([([5], [[1], [2]], {"ranks": [0, 0]})], pad_id=0)
    assert batch.pairs.shape == torch.Size([0, 2])
    assert batch.prompts == 0


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""As Qwen3's: an answer follows an empty thought where none is wanted."""


def test_a_template_that_knows_of_thoughts_is_asked_for_none(tokenizer):
    original = tokenizer.chat_template
    tokenizer.chat_template = THINKING
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    try:
        encoded = collate.encode_demonstration(tokenizer, turns, 200)
        prompt = collate.encode_prompt(tokenizer, turns[:-1])
    finally:
        tokenizer.chat_template = original
    assert encoded is not None and encoded.ids[: len(prompt)] == prompt
    (learnt,) = targets(tokenizer, encoded)
    assert learnt.startswith("Hello") and "think" not in learnt


def test_where_thoughts_are_taken_out_of_earlier_answers_the_last_one_is_learnt(tokenizer):
    """What comes before is what the sampler would see; what is not learnt is counted."""
    original = tokenizer.chat_template
    tokenizer.chat_template = THINKING
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"Turn {i}."} for i in range(6)]
    try:
        encoded = collate.encode_demonstration(tokenizer, turns, 400)
        prompt = collate.encode_prompt(tokenizer, turns[:-1])
    finally:
        tokenizer.chat_template = original
    assert encoded is not None and encoded.ids[: len(prompt)] == prompt
    (learnt,) = targets(tokenizer, encoded)
    assert learnt.startswith("Turn 5.") and "think" not in learnt
    assert encoded.replies_not_learnt == 2


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].role }}",  # Llama 3's, of a conversation that an answer begins
        "{{ raise_exception('roles must alternate') }}",
    ],
)
def test_what_a_template_refuses_is_told_in_one_line(tokenizer, template):
    original = tokenizer.chat_template
    tokenizer.chat_template = template
    try:
        with pytest.raises(
            UserError, match=r"must render every conversation, .* the roles none"
        ) as e:
            collate.encode_demonstration(tokenizer, [{"role": "assistant", "content": "Hi"}], 200)
    finally:
        tokenizer.chat_template = original
    assert "\n" not in str(e.value)
