"""`mix.over_long=cut`: the beginning is kept, up to the end of a sentence."""

import json
from dataclasses import replace

import pytest

from rlhf_lightning.config import MixConfig, PPOConfig, RewardConfig, SFTConfig, SourceConfig
from rlhf_lightning.data import batching, collate
from rlhf_lightning.data.cutting import cut_comparisons, cut_demonstration, cut_prompt
from rlhf_lightning.data.mixture import Mixture
from rlhf_lightning.data.sentences import cut_to, first_chars, sentence_ends
from rlhf_lightning.errors import UserError

LONG = "The otter is quick. " * 20


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def mixture(tmp_path, rows, over_long):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(path=str(path))
    config = MixConfig(
        name="t", sources={"a": source}, over_long=over_long, validation_fraction=0, test_fraction=0
    )
    return Mixture(config, 0)


def test_a_sentence_ends_with_its_marks_or_its_line():
    text = 'He said "No." Then\nhe left... 3.5 km'
    assert [text[:end] for end in sentence_ends(text)] == [
        'He said "No."', 'He said "No." Then\n', 'He said "No." Then\nhe left...', text,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("room", "kept"), [(3, None), (4, "A b."), (8, "A b."), (9, "A b. C d."), (99, "A b. C d. E")]
)
def test_the_longest_beginning_that_fits_is_kept(room, kept):
    assert cut_to("A b. C d. E", lambda part: len(part) <= room) == kept


def test_characters_are_cut_between_sentences_where_there_are_any():
    assert first_chars("A b. C d.", 7) == "A b."
    assert first_chars("abcdefgh", 4) == "abcd"
    assert first_chars("abc", None) == "abc"


def test_the_last_reply_is_cut_and_else_the_longest_question(tokenizer):
    whole = [user("hello"), assistant(LONG)]
    found = cut_demonstration(tokenizer, whole, 40)
    assert found[0] == whole[0]
    assert found[1]["content"] and LONG.startswith(found[1]["content"])
    assert found[1]["content"].endswith(".")
    assert len(collate.encode_demonstration(tokenizer, found, 40).ids) <= 40
    asked = [user(LONG), assistant("Small.")]
    found = cut_demonstration(tokenizer, asked, 40)
    assert found[1] == asked[1]
    assert len(found[0]["content"]) < len(LONG)
    assert cut_demonstration(tokenizer, [user("x" * 900), assistant("y" * 900)], 40) is None


def test_a_prompt_loses_the_end_of_its_longest_message(tokenizer):
    found = cut_prompt(tokenizer, [user(LONG), assistant("So?"), user("hello there")], 60)
    assert [m["content"] for m in found[1:]] == ["So?", "hello there"]
    assert len(collate.encode_prompt(tokenizer, found)) <= 60


@pytest.mark.parametrize("gap", ["\n\n", "\n \n\n"])
def test_a_question_behind_its_passages_stays(tokenizer, gap):
    question = "Question: is the otter quick?"
    whole = user(f"Read.\n\n{LONG}\n\n{LONG}{gap}{question}\n")
    found = cut_prompt(tokenizer, [whole], 60)
    passages, asked = found[0]["content"].split(gap + question)
    assert asked == ""
    assert passages.startswith("Read.\n\nThe otter is quick.")
    assert passages.endswith(".")
    assert 30 < len(collate.encode_prompt(tokenizer, found)) <= 60
    taught = cut_demonstration(tokenizer, [whole, assistant("Yes.")], 60)
    assert taught[0]["content"].endswith(gap + question)
    alone = len(collate.encode_prompt(tokenizer, [user(question)]))
    assert cut_prompt(tokenizer, [whole], alone) is None, "a question alone asks about nothing"


def test_a_last_paragraph_that_does_not_fit_is_no_reason_to_drop_the_message(tokenizer):
    found = cut_prompt(tokenizer, [user("\n\n".join([LONG * 2, LONG * 2, LONG]))], 40)
    assert LONG.startswith(found[0]["content"])
    assert 20 < len(collate.encode_prompt(tokenizer, found)) <= 40


def test_a_last_paragraph_that_is_most_of_the_message_is_what_is_cut(tokenizer):
    found = cut_prompt(tokenizer, [user(f"Summarize.\n\n{LONG}")], 60)
    assert found[0]["content"].startswith("Summarize.\n\nThe otter")
    assert len(collate.encode_prompt(tokenizer, found)) <= 60


def test_completions_are_cut_to_the_room_behind_their_prompt(tokenizer):
    record = {"prompt": [user("hello")], "completions": [LONG, "Yes."], "ranks": [0, 1]}
    (found,), count = cut_comparisons([record], tokenizer, 40)
    assert count == 1
    assert found["completions"][1] == "Yes."
    assert 0 < len(found["completions"][0]) < len(LONG)
    (found,), count = cut_comparisons([record | {"prompt": [user(LONG)]}], tokenizer, 80)
    assert count == 2  # the prompt to half of the room, the completion to the rest
    ids = collate.encode_prompt(tokenizer, found["prompt"])
    assert len(ids) <= 40
    assert len(ids) + len(collate.encode_completion(tokenizer, found["completions"][0])) <= 80
    assert cut_comparisons([found], tokenizer, 80) == ([found], 0)


ROWS = [{"text": f"{i} is first. {LONG}"} for i in range(8)] + [
    {"text": "x" * 900},
    {"text": "short"},
]


@pytest.mark.parametrize(
    ("over_long", "counts"),
    [("cut", {"examples": 9, "too_long": 1, "cut": 8}), ("drop", {"examples": 1, "too_long": 9})],
)
def test_what_was_cut_and_dropped_is_counted(tmp_path, tokenizer, over_long, counts):
    hp = SFTConfig(max_length=64, examples=10, global_batch_size=10)
    mix = mixture(tmp_path, ROWS, over_long)
    loader = batching.sft_batches(mix, tokenizer, kind="text", hp=hp, split="train", seed=0)
    (batch,) = loader
    assert loader.counts == counts
    assert int(batch.documents.max(dim=1).values.sum()) == counts["examples"]


@pytest.mark.parametrize(
    ("over_long", "counts"),
    [("cut", {"examples": 9, "too_long": 1, "cut": 8}), ("drop", {"examples": 1, "too_long": 9})],
)
def test_a_reply_may_be_too_long_where_the_whole_is_not(tmp_path, tokenizer, over_long, counts):
    """Each reply that is learned has at most so many tokens, EOS included."""
    limit = len(collate.encode_completion(tokenizer, "It is 7 times. So I say."))
    replies = [f"It is {i} times. So I say. And so on, and on." for i in range(8)]
    rows = [{"prompt": "Why?", "completion": text} for text in [*replies, "x" * 90, "No."]]
    hp = SFTConfig(max_length=256, max_reply_tokens=limit, examples=10, global_batch_size=10)
    mix = mixture(tmp_path, rows, over_long)
    loader = batching.sft_batches(
        mix, tokenizer, kind="demonstration", hp=hp, split="train", seed=0
    )
    (batch,) = loader
    assert loader.counts == counts
    targets = [
        int((batch.loss_mask & (batch.documents == number)).sum(1).max())
        for number in range(1, int(batch.documents.max()) + 1)
    ]
    assert max(targets) == (
        limit if over_long == "cut" else len(collate.encode_completion(tokenizer, "No."))
    )
    long_question = [user(LONG), assistant("It is 7 times. So I say. And so on.")]
    found = cut_demonstration(tokenizer, long_question, 60, limit)  # both are too long
    assert found[1]["content"] == "It is 7 times. So I say."
    assert LONG.startswith(found[0]["content"]) and len(found[0]["content"]) < len(LONG)
    with pytest.raises(UserError, match=r"sft.max_length and sft.max_reply_tokens .* 256 and 1:"):
        next(
            iter(
                batching.sft_batches(
                    mix,
                    tokenizer,
                    kind="demonstration",
                    hp=replace(hp, max_reply_tokens=1),
                    split="train",
                    seed=0,
                )
            )
        )


def test_prompts_are_cut_for_ppo(tmp_path, tokenizer):
    rows = [{"prompt": f"{i} is first. {LONG}"} for i in range(8)]
    hp = PPOConfig(
        iterations=1,
        episodes_per_iteration=8,
        minibatch_size=8,
        rollout_batch_size=8,
        max_prompt_tokens=40,
    )
    loader = batching.prompt_batches(mixture(tmp_path, rows, "cut"), tokenizer, hp=hp)
    (batch,) = loader
    assert loader.counts == {"prompts": 8, "prompts_too_long": 0, "prompts_cut": 8}
    assert batch.prompts.ids.shape[1] <= 40
    for record, ids in zip(batch.prompts.records, batch.prompts.ids, strict=True):
        assert record["prompt"][0]["content"] in tokenizer.decode(
            ids
        )  # the record says what the policy saw
    dropped = batching.prompt_batches(mixture(tmp_path, rows, "drop"), tokenizer, hp=hp)
    with pytest.raises(UserError, match=r"ppo.max_prompt_tokens must be enough"):
        next(iter(dropped))


def test_comparisons_are_cut_for_the_reward_model(tokenizer):
    records = [{"prompt": [user("hello")], "completions": [LONG, "Yes."], "ranks": [0, 1]}]
    hp = RewardConfig(global_batch_size=1, epochs=1)
    for over_long, counts in (
        (
            "cut",
            {
                "prompts": 1,
                "prompts_dropped": 0,
                "completions_too_long": 0,
                "prompts_and_completions_cut": 1,
            },
        ),
        ("drop", None),
    ):
        loader = batching.comparison_batches(
            records, tokenizer, hp=hp, max_length=40, seed=0, over_long=over_long
        )
        if counts is None:
            with pytest.raises(UserError, match="must be enough for comparisons"):
                next(iter(loader))
        else:
            (batch,) = loader
            assert batch.pairs.tolist() == [[0, 1]]
            assert loader.counts == counts
