"""Every public format, from every kind of file."""

import csv
import gzip
import json
import os
from pathlib import Path

import pytest

from rlhf_lightning.data import formats
from rlhf_lightning.data.files import FileSource
from rlhf_lightning.data.formats import FORMATS, Removed
from rlhf_lightning.data.index import Rules
from rlhf_lightning.errors import UserError
from tests.data.formats_rows import CSV, EXAMPLES, HH, QA, TREE, A, B, U, node

REAL = Path(os.environ.get("RLHF_DATA") or Path(__file__).parents[3] / "shared" / "data")
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no data at {REAL} (set RLHF_DATA)")


def adapted(row, where="f:1", **options):
    found = formats.format_of(row, where)
    return list(found.adapt(row, where, **options))


def all_train(path, **options):
    return FileSource(path, validation_fraction=0, test_fraction=0, **options)


def records(source, kind):
    return [source.record(kind, "train", i) for i in range(source.size(kind, "train"))]


def write(path, row, form):
    if form == ".jsonl":
        path.write_text(json.dumps(row) + "\n")
    elif form == ".json":
        path.write_text(json.dumps([row]))
    elif form == ".csv":
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(row)
            rows.writerow([v if isinstance(v, str) else json.dumps(v) for v in row.values()])
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist([row]), path)


def test_every_format_has_an_example_but_those_without_keys():
    assert {known.name for known in FORMATS} == EXAMPLES.keys() | {"strings", "continuation"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_row_shows_its_format(name):
    assert formats.format_of(EXAMPLES[name][0], "f:1").name == name


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("form", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_format_gives_its_records_from_every_kind_of_file(tmp_path, name, form, zipped):
    row, expected = EXAMPLES[name]
    if form == ".csv" and name not in CSV:
        pytest.skip("no table")
    if form == ".parquet" and name == "oasst":
        pytest.skip("a tree has no column type: its replies nest without end")
    path = tmp_path / f"rows{form}"
    write(path, row, form)
    if zipped:
        zipped_path = tmp_path / f"z{form}.gz"
        zipped_path.write_bytes(gzip.compress(path.read_bytes()))
        path = zipped_path
    source = all_train(path)
    for kind, wanted in expected.items():
        found = records(source, kind)
        if name == "qa_feedback":
            short = {
                "comparison": lambda r: r["pairs"],
                "demonstration": lambda r: r["messages"][-1]["content"],
            }
            found = [short[kind](record) for record in found]
        elif name == "oasst":
            found = sorted([record["completions"], record["ranks"]] for record in found)
            wanted = sorted(wanted)
        assert found == wanted
    if {"comparison", "demonstration"} & expected.keys():
        assert source.size("prompt", "train") >= 1  # everyone's prompt is PPO's too


def test_an_unknown_row_is_refused_with_its_keys_and_the_known_formats(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"query": "a", "reply": "b"}\n')
    with pytest.raises(UserError) as caught:
        FileSource(path)
    line = str(caught.value)
    assert line.startswith(
        f"{path}:1: must be of a known format, got the keys ['query', 'reply']; known are "
    )
    assert all(f"{known.name} (" in line for known in FORMATS)
    assert "\n" not in line


def test_a_format_can_be_named_and_must_be_known(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('"Name a bird."\n"Name a fish."\n')
    assert len(records(all_train(path, format_name="strings"), "prompt")) == 2
    assert len(records(all_train(path), "prompt")) == 2
    with pytest.raises(
        UserError, match=r"source.format must be null or one of alpaca, .*, got 'alpacca'"
    ):
        FileSource(path, format_name="alpacca")


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            "alpaca",
            {"instruction": "a"},
            r":2: must have 'output' like the rows before it, got \['instruction'\]",
        ),
        ("preference", {"prompt": "a", "chosen": "b"}, r":2: must have 'rejected'"),
        (
            "preference",
            {"prompt": "a", "chosen": 3, "rejected": "b"},
            ":2: chosen must be text or a list of messages, got 3",
        ),
        (
            "preference",
            {"chosen": "a", "rejected": "b"},
            ":2: chosen and rejected must be messages that begin alike",
        ),
        (
            "hh",
            {"chosen": "a", "rejected": "b"},
            ":2: chosen must be a transcript of Human: and Assistant: turns",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "me", "value": "a"}]},
            r":2: conversations\[0\].from must be one of human, .*, got 'me'",
        ),
        ("qa_feedback", QA | {"preference": [0, 3]}, ":2: preference must be six labels 0, 1 or 2"),
        (
            "qa_feedback",
            QA | {"passages": "x"},
            ":2: passages must be lists of title and sentences",
        ),
        (
            "oasst",
            {"prompt": node("assistant", "a")},
            ":2: a prompter's message must stand here, got 'assistant'",
        ),
        (
            "oasst",
            {"prompt": node("teacher", "a")},
            ":2: role must be prompter or assistant, got 'teacher'",
        ),
        ("scitldr", {"source": 3, "target": "a"}, ":2: source must be text, got 3"),
        (
            "sharegpt",
            {"conversations": [{"from": ["human"], "value": "a"}]},
            ":2: must be a row of the format sharegpt, got a value of another type",
        ),
        (
            "prompt_completion",
            {"prompt": "a", "completion": "b", "label": False},
            ":2: a demonstration must not have a label",
        ),
        (
            "messages",
            {"messages": [U, A], "completions": ["a", "b"], "ranks": [0, 1]},
            ":2: a demonstration must not have 'completions'",
        ),
        (
            "prompt",
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            ":2: a prompt must not have 'chosen'",
        ),
        (
            "self_instruct",
            {"instruction": "a", "instances": [{"input": ""}]},
            r":2: instances\[0\]: must have 'output'",
        ),
        (
            "prompt_completion",
            {"prompt": "a", "completion": [U]},
            ":2: a demonstration must end with an assistant turn, got user",
        ),
    ],
)
def test_a_malformed_row_of_a_known_format_is_refused_with_its_place(
    tmp_path, first, second, message
):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(EXAMPLES[first][0]) + "\n" + json.dumps(second) + "\n")
    with pytest.raises(UserError, match=message):
        FileSource(path)


SHORT = {"role": "system", "content": "Be short."}


@pytest.mark.parametrize("name", ["prompt_completion", "preference", "alpaca", "sharegpt"])
def test_a_column_system_stands_before_the_conversation(name):
    """It was left alone, and the prompt was another one."""
    row, _ = EXAMPLES[name]
    before = adapted(row)
    after = adapted({**row, "system": " Be short. "})
    for (kind, plain), (same, found) in zip(before, after, strict=True):
        key = "messages" if "messages" in plain else "prompt"
        assert (kind, {**plain, key: [SHORT, *plain[key]]}) == (same, found)
    assert adapted({**row, "system": ""}) == adapted({**row, "system": None}) == before


def test_a_system_message_twice_must_be_the_same():
    row = {"prompt": [SHORT, U], "completion": A["content"]}
    assert adapted({**row, "system": "Be short."}) == adapted(row)
    with pytest.raises(UserError, match=r"^f:1: system must be what the conversation begins with"):
        adapted({**row, "system": "Be long."})


def test_a_history_of_alpaca_is_what_was_said_before():
    row = {
        "instruction": "And a hen?",
        "output": "Grain.",
        "history": [["What does a fox eat?", "Meat."]],
    }
    ((kind, record),) = adapted(row)
    assert kind == "demonstration"
    assert [m["content"] for m in record["messages"]] == [
        "What does a fox eat?",
        "Meat.",
        "And a hen?",
        "Grain.",
    ]
    assert [m["role"] for m in record["messages"]] == ["user", "assistant"] * 2
    with pytest.raises(
        UserError, match=r"^f:1: history must be a list of \[instruction, output\], got 'x'"
    ):
        adapted({**row, "history": "x"})


def test_a_history_in_a_table_is_json(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(
        'instruction,output,history\nAnd a hen?,Grain.,"[[""A fox?"", ""Meat.""]]"\nAn owl?,Mice.,\n'
    )
    found = sorted(len(r["messages"]) for r in records(all_train(path), "demonstration"))
    assert found == [2, 4]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "completion": " <|endoftext|>"}, "empty"),
        ({"instruction": "a", "output": ""}, "empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "identical"),
        ({"prompt": "a", "chosen": " ", "rejected": "b"}, "empty"),  # a cell that nobody filled in
        ({"chosen": [U, A, U, A], "rejected": [U, B, U, A]}, "differs_before_the_last_turn"),
        ({"chosen": [A], "rejected": [B], "prompt": [A]}, "no_prompt"),
        ({"source": [], "target": ["a"]}, "empty"),
        ({"text": " "}, "empty"),
        ({"messages": [U, {"role": "assistant", "content": ""}]}, "empty"),
        ({"messages": []}, "empty"),
        ({"messages": [{"role": "user", "content": ""}]}, "empty"),
        ({"conversations": []}, "no_answer"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "no_answer"),
        ({"prompt": "Another one.", "chosen": [U, A], "rejected": [U, B]}, "another_prompt"),
        ({"prompt": node("prompter", "a", deleted=True)}, "deleted"),
        ({"prompt": node("prompter", "a", review_result=False)}, "refused_by_reviewers"),
    ],
)
def test_what_is_normal_in_public_data_is_counted(row, reason):
    assert adapted(row) == [Removed(reason)]


def test_rows_without_judgement_and_repeated_rows_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    tied = {"prompt": "Which?", "completions": ["a", "b"], "ranks": [1, 1]}
    good = EXAMPLES["comparison"][0]
    path.write_text("".join(json.dumps(row) + "\n" for row in (tied, good, good, tied)))
    source = all_train(path)
    assert source.removed == {"all_tied": 2, "duplicate": 1}
    assert records(source, "comparison") == [good]
    assert records(source, "prompt") == [{"prompt": [U]}]  # once, though two rows ask it


def test_only_comparisons_may_be_several_labels(tmp_path):
    said = {"prompt": "Which?", "completion": "a"}
    ranked = {"prompt": "Which?", "completions": ["a", "b"], "ranks": [0, 1]}
    for name, row in (("said", said), ("ranked", ranked)):
        (tmp_path / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    source = FileSource(tmp_path, rules=Rules(0, 0, keep_repeats=True))
    sizes = {kind: source.size(kind, "train") for kind in source.kinds}
    assert sizes == {"comparison": 3, "demonstration": 1, "prompt": 1}
    assert source.removed == {"duplicate": 2}  # of the demonstration


def test_a_conversation_ends_with_its_last_answer_and_without_one_it_is_a_prompt():
    empty = {"role": "system", "content": " "}
    left = Removed("turn_after_the_last_answer")
    assert adapted({"messages": [empty, U, A, U]}) == [
        left,
        ("demonstration", {"messages": [U, A]}),
    ]
    assert adapted({"messages": [empty, U]}) == [("prompt", {"prompt": [U]})]


def test_sharegpt_turns_go_by_several_names_and_an_opening_answer_is_counted():
    bing = {"from": "bing", "value": "Hello."}
    turns = [bing, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    found = adapted({"conversations": turns})
    assert found == [
        Removed("answer_before_the_first_question"),
        ("demonstration", {"messages": turns[1:]}),
    ]


@pytest.mark.parametrize("label", [True, 0, "False"])
def test_an_answer_that_is_labelled_good_or_bad_is_no_demonstration(label):
    with pytest.raises(UserError, match="a demonstration must not have a label, good or bad"):
        adapted({"prompt": "a", "completion": "b", "label": label})


def test_one_message_of_a_tree_is_no_text():
    row = {"message_id": "1", "parent_id": None, "role": "prompter", "text": "Hi", "rank": None}
    with pytest.raises(UserError, match="must be a whole tree of messages"):
        adapted(row)


def test_a_text_may_have_a_column_called_meta():
    assert adapted({"text": "a", "meta": "pile"}) == [("text", {"text": "a"})]


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("prompt", "before"),
    [
        (U["content"] + "\n", [{**U, "content": U["content"] + "\n"}]),
        (U["content"], [SYSTEM, U]),
        ("And by day?", [U, A, {"role": "user", "content": "And by day?"}]),
        ([U], [{"role": "system", "content": ""}, U]),
    ],
)
def test_a_prompt_beside_whole_conversations_is_not_asked_twice(prompt, before):
    row = {"prompt": prompt, "chosen": [*before, A], "rejected": [*before, B]}
    (found,) = adapted(row)
    assert found[1]["prompt"] == [m for m in before if m["content"]]
    assert found[1]["completions"] == [A["content"], B["content"]]


def test_conversations_without_a_prompt_share_their_beginning():
    (found,) = adapted({"chosen": [U, A, U, A], "rejected": [U, A, U, B]})
    assert found == (
        "comparison",
        {"prompt": [U, A, U], "completions": ["The owl.", "The hen."], "ranks": [0, 1]},
    )
    assert adapted({"prompt": U["content"], "chosen": [U, A], "rejected": [U, B]})[0][1][
        "prompt"
    ] == [U]
    assert adapted({"prompt": [U], "chosen": [A], "rejected": [B]})[0][1]["prompt"] == [U]


@pytest.mark.parametrize("cue", ["", "\n\nAssistant:"])
@pytest.mark.parametrize("start", ["", "\n\nAssistant:", "\n\nHuman: Hi\n\nAssistant:"])
def test_a_transcript_as_the_prompt_is_a_conversation(tmp_path, start, cue):
    """`chosen` and `rejected` are answers to it, or hold it."""
    path = tmp_path / "a.jsonl"
    row = {
        "prompt": f"\n\nHuman: Hi{cue}",
        "chosen": f"{start} Hello.",
        "rejected": f"{start} No.",
    }
    path.write_text(json.dumps(row) + "\n")
    record = FileSource(path, validation_fraction=0.0, test_fraction=0.0).record(
        "comparison", "train", 0
    )
    assert record["prompt"] == [{"role": "user", "content": "Hi"}]
    assert record["completions"] == ["Hello.", "No."]


@pytest.mark.parametrize("cue", ["", "\n\nAssistant:"])
def test_a_transcript_is_one_in_every_row_that_has_a_prompt(cue):
    asked = f"\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Which bird?{cue}"
    says = ("user", "Hi"), ("assistant", "Yes?"), ("user", "Which bird?")
    messages = [{"role": role, "content": content} for role, content in says]
    assert adapted({"prompt": asked}) == [("prompt", {"prompt": messages})]
    demonstration = ("demonstration", {"messages": [*messages, A]})
    assert adapted({"prompt": asked, "completion": " The owl."}) == [demonstration]


@pytest.mark.parametrize("answer", [" The owl.", "Assistant: The owl.", "\n\nAssistant: The owl."])
@pytest.mark.parametrize("end", ["", "\n\n", "\n\nAssistant:", "\n\nAssistant: "])
def test_the_label_of_a_speaker_is_no_part_of_an_answer(end, answer):
    asked = f"\n\nHuman: Which bird?{end}"
    messages = [{"role": "user", "content": "Which bird?"}, A]
    found = adapted({"prompt": asked, "completion": answer})
    assert found == [("demonstration", {"messages": messages})]


def test_an_answer_goes_on_where_its_prompt_began_it():
    row = {
        "prompt": "\n\nHuman: Which bird?\n\nAssistant: The",
        "chosen": " owl.",
        "rejected": " hen.",
    }
    (found,) = adapted(row)
    assert found[1]["completions"] == ["The owl.", "The hen."]


@pytest.mark.parametrize(
    "prompt", ["Human: What is love?\nAssistant:", "Assistant: a chess engine.", "Human: a being?"]
)
def test_a_text_with_a_speakers_name_is_no_transcript(prompt):
    expected = [("prompt", {"prompt": [{"role": "user", "content": prompt}]})]
    assert adapted({"prompt": prompt}) == expected
    (found,) = adapted({"prompt": "Define a person.", "completion": "Human: a being"})
    assert found[1]["messages"][-1]["content"] == "Human: a being"


@pytest.mark.parametrize("more", [{}, {"completion": "Hello."}])
def test_a_transcript_that_asks_nothing_is_counted(more):
    assert adapted({"prompt": "\n\nHuman: \n\nAssistant:", **more}) == [Removed("empty")]


def test_a_conversation_that_a_greeting_begins_is_whole():
    greeting = {"role": "assistant", "content": "Hello."}
    row = {"prompt": [greeting, U], "chosen": [greeting, U, A], "rejected": [greeting, U, B]}
    (found,) = adapted(row)
    assert found[1]["prompt"] == [greeting, U]


def test_an_hh_answer_of_no_words_can_lose():
    (found,) = adapted(HH | {"rejected": HH["chosen"].removesuffix(" The owl.")})
    assert found[1]["completions"] == ["The owl.", ""]


def test_a_tree_gives_comparisons_at_every_turn_the_best_paths_and_all_prompts():
    found = adapted(TREE)
    kinds = [item[0] for item in found if not isinstance(item, Removed)]
    assert kinds.count("comparison") == 2
    # the best answer, then each question that follows it; "Thanks!" was not answered
    said = [
        [m["content"] for m in item[1]["messages"]]
        for item in found
        if not isinstance(item, Removed) and item[0] == "demonstration"
    ]
    assert said == [[U["content"], "The owl.", "What does it eat?", "Small animals."]]
    prompts = [
        item[1]["prompt"][-1]["content"]
        for item in found
        if not isinstance(item, Removed) and item[0] == "prompt"
    ]
    assert prompts == [U["content"], "What does it eat?", "Thanks!"]
    assert sorted(i.reason for i in found if isinstance(i, Removed)) == ["deleted", "spam"]


def test_a_tree_can_be_kept_to_one_language_and_to_people():
    tree = {
        "prompt": node(
            "prompter",
            "a",
            node("assistant", "b", lang="de"),
            node("assistant", "c", synthetic=True),
        )
    }
    found = adapted(tree, lang="en", synthetic=False)
    assert [i.reason for i in found if isinstance(i, Removed)] == ["other_language", "synthetic"]
    assert [i[0] for i in found if not isinstance(i, Removed)] == ["prompt"]


@pytest.mark.parametrize("count", range(2, 12))
def test_comparisons_of_any_number_of_completions(tmp_path, count):
    path = tmp_path / "a.jsonl"
    row = {
        "prompt": "Count.",
        "completions": [str(i) for i in range(count)],
        "ranks": list(range(count)),
    }
    pairs = {**row, "prompt": "Order.", "pairs": [[i, i + 1] for i in range(count - 1)]}
    del pairs["ranks"]
    path.write_text(json.dumps(row) + "\n" + json.dumps(pairs))
    assert [len(r["completions"]) for r in records(all_train(path), "comparison")] == [count, count]


def test_passages_are_cut_between_sentences_and_the_wording_is_free():
    kinds = dict(adapted(QA, passage_chars=30, instruction="", answer="gold"))
    prompt = kinds["comparison"]["prompt"][0]["content"]
    # "Owl\nThe owl hunts at night." has 27 characters; the next sentence would make 45
    assert prompt == "Owl\nThe owl hunts at night.\n\nQuestion: When does the owl hunt?"
    assert kinds["demonstration"]["messages"][-1]["content"] == QA["gold"]
    assert kinds["comparison"]["meta"] == {"references": [QA["gold"]]}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"passage_char": 3},
            r"source.args must be some of \[.*'passage_chars'.*\], got 'passage_char'",
        ),
        ({"passage_chars": "x"}, r"source.args.passage_chars must be int \| None, got 'x'"),
        ({"passage_chars": 0}, "source.args.passage_chars must be >= 1, got 0"),
        ({"strip_gutenberg": "no"}, "args.strip_gutenberg must be true or false, got 'no'"),
        ({"chunk_chars": -500}, "source.args.chunk_chars must be >= 1, got -500"),
        ({"answer": "best"}, "args.answer must be corrected, gold or none, got 'best'"),
        (
            {"lang": "en"},
            r"source.args must be options of the format qa_feedback \(.*\), got 'lang'",
        ),
    ],
)
def test_options_are_checked(tmp_path, args, message):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([QA]))
    with pytest.raises(UserError, match=message):
        FileSource(path, args=args)


BOOK = (
    "Title\n*** START OF THIS PROJECT GUTENBERG EBOOK OWLS ***\n\nThe owl flies. It hunts\nat night.\n\n"
    "It sleeps by day.\n\n*** END OF THIS PROJECT GUTENBERG EBOOK OWLS ***\nLicence\n"
)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_book_is_cut_into_pieces_without_its_licence(tmp_path, zipped):
    path = tmp_path / ("book.txt.gz" if zipped else "book.txt")
    path.write_bytes(gzip.compress(BOOK.encode()) if zipped else BOOK.encode())
    source = all_train(path, args={"chunk_chars": 40})
    said = ["The owl flies. It hunts\nat night.", "It sleeps by day."]
    assert [r["text"] for r in records(source, "text")] == said
    assert source.removed == {"gutenberg_line": 4}  # two before the book, two after it
    whole = all_train(path, args={"strip_gutenberg": False, "chunk_chars": 1000})
    assert records(whole, "text")[0]["text"].endswith("Licence")


def test_pieces_of_a_text_hold_all_its_words(tmp_path):
    words = [f"w{i}{'.' if i % 7 == 0 else ''}" for i in range(2000)]
    path = tmp_path / "a.txt"
    path.write_text(" ".join(words[:900]) + "\n\n" + "\n".join(words[900:]))
    pieces = [r["text"] for r in records(all_train(path, args={"chunk_chars": 100}), "text")]
    assert " ".join(pieces).split() == words
    assert max(map(len, pieces)) <= 100
    long_row = tmp_path / "b.jsonl"
    long_row.write_text(json.dumps({"text": " ".join(words)}))
    assert len(records(all_train(long_row), "text")) == 1
    pieces = [r["text"] for r in records(all_train(long_row, args={"chunk_chars": 100}), "text")]
    assert " ".join(pieces).split() == words


def test_the_papers_of_a_folder_are_no_data(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "Owls fly."}')
    (tmp_path / "words.txt").write_text("not data either")
    assert [p.name for p in all_train(tmp_path).paths] == ["a.jsonl"]
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "LICENSE.txt").write_text("no data")
    assert [p.name for p in all_train(tmp_path).paths] == ["words.txt"]


@pytest.mark.parametrize("turns", [2, 3])
def test_single_turns_are_strung_into_dialogues(tmp_path, turns):
    path = tmp_path / "a.jsonl"
    rows = [{"instruction": f"Say {i}.", "output": f"{i}"} for i in range(7)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = all_train(path, dialogue_turns=turns)
    found = records(source, "demonstration")
    assert [len(r["messages"]) // 2 for r in found] == [turns] * (7 // turns) + [7 % turns]
    assert [m["content"] for r in found for m in r["messages"][1::2]] == [str(i) for i in range(7)]
    assert source.size("prompt", "train") == 7


def test_a_longer_conversation_is_not_strung(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"messages": m}) + "\n" for m in ([U, A, U, B], [U, A], [U, B]))
    )
    lengths = [
        len(r["messages"]) for r in records(all_train(path, dialogue_turns=2), "demonstration")
    ]
    assert lengths == [4, 4]


@real
@pytest.mark.parametrize(
    ("path", "sizes", "removed"),
    [
        # 212 sets of ranked replies
        ("oasst_trees_en100/en_100_tree.jsonl", {"comparison": 212}, {"unranked_reply": 6}),
        ("oasst_trees_en100/prompt_lottery_en_250_text.jsonl", {"prompt": 250}, {}),
        # 500 questions; 12 without any preference, 13 not mended
        (
            "qa_feedback_dev/dev_feedback.json",
            {"comparison": 488, "demonstration": 487, "prompt": 498},
            {"all_tied": 12, "no_answer": 13},
        ),
        # 2,294 pairs
        (
            "hh_rlhf_harmless_test/test.jsonl.gz",
            {"comparison": 2285},
            {"differs_before_the_last_turn": 5, "empty": 4},
        ),
        ("self_instruct/seed_tasks.jsonl", {"demonstration": 175}, {}),
        # 1,992 + 619 + 618 papers, one twice
        ("scitldr_a", {"demonstration": 3228}, {"duplicate": 1}),
        ("hhh_alignment/hhh_alignment.jsonl", {"comparison": 221}, {}),
        # trec has 200 rows without an answer
        ("t0_p3_sample", {"demonstration": 2607}, {"empty": 200, "duplicate": 1}),
    ],
)
def test_real_data_is_read_whole(path, sizes, removed):
    source = all_train(REAL / path)
    assert {kind: source.size(kind, "train") for kind in sizes} == sizes
    assert source.removed == removed
    for kind in source.kinds:
        source.record(kind, "train", source.size(kind, "train") - 1)


@real
def test_real_books_lose_their_licence_and_nothing_else():
    source = all_train(REAL / "gutenberg_stories", args={"chunk_chars": 800})
    said = [r["text"] for r in records(source, "text")]
    assert len(source.paths) == 5
    assert max(map(len, said)) <= 800
    assert not any("Project Gutenberg License" in text for text in said)


def test_a_text_becomes_a_request_to_go_on_and_its_next_sentences(tmp_path):
    """Beginnings of at most 20 characters, whole sentences: "One two. Three." (15); then "Four five." (10) of 12."""
    path = tmp_path / "story.jsonl"
    rows = ["One two. Three. Four five. Six.", "A single sentence that has no end"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    args = {"instruction": "Go on.", "prompt_chars": 20, "response_chars": 12}
    source = all_train(path, format_name="continuation", args=args)
    (spoken,) = records(source, "demonstration")
    asked = {"role": "user", "content": "Go on.\n\nOne two. Three."}
    assert spoken["messages"] == [asked, {"role": "assistant", "content": "Four five."}]
    assert records(source, "prompt") == [{"prompt": [asked]}]
    assert source.removed["no_sentence_that_fits"] == 1
