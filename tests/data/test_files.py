import codecs
import csv
import gzip
import hashlib
import io
import json
import os
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_lightning.data import files
from rlhf_lightning.data.files import FileSource
from rlhf_lightning.data.records import prompt_key, split_key
from rlhf_lightning.data.sentences import chunks
from rlhf_lightning.errors import UserError


def prompt(i):
    return {"prompt": [{"role": "user", "content": f"question {i} é🦦"}]}


PROMPTS = [prompt(i) for i in range(60)]
LINES = "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in PROMPTS).encode()


def write(path, form):
    if form == ".jsonl":
        path.write_bytes(LINES)
    elif form == ".json":
        path.write_text(json.dumps(PROMPTS))
    elif form == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["prompt", "source"])
            rows.writerows([json.dumps(p["prompt"]), ""] for p in PROMPTS)
    else:
        pq.write_table(pa.Table.from_pylist(PROMPTS), path)


@pytest.mark.parametrize("form", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("zipped", [False, True])
def test_every_format_gives_the_same_records_in_the_same_splits(tmp_path, form, zipped):
    plain, path = tmp_path / f"a{form}", tmp_path / f"b{form}"
    write(plain, form)
    if zipped:
        path = tmp_path / f"b{form}.gz"
        path.write_bytes(gzip.compress(plain.read_bytes()))
    else:
        path.write_bytes(plain.read_bytes())
    reference = tmp_path / "reference.jsonl"
    reference.write_bytes(LINES)
    fractions = {"validation_fraction": 0.2, "test_fraction": 0.2}
    found, expected = FileSource(path, **fractions), FileSource(reference, **fractions)
    assert found.kinds == {"prompt"}
    for split in ("train", "validation", "test"):
        n = expected.size("prompt", split)
        assert found.size("prompt", split) == n > 0
        for i in range(n):
            assert found.record("prompt", split, i) == expected.record("prompt", split, i)


def test_splits_by_prompt_never_overlap(tmp_path):
    path = tmp_path / "c.jsonl"
    rows = [PROMPTS[i % 20] | {"meta": {"row": i}} for i in range(60)]  # each prompt three times
    path.write_text("\n\n".join(map(json.dumps, rows)))  # blank lines are no rows
    source = FileSource(path, validation_fraction=0.3, test_fraction=0.3)
    keys = {
        split: {
            prompt_key(source.record("prompt", split, i)["prompt"])
            for i in range(source.size("prompt", split))
        }
        for split in ("train", "validation", "test")
    }
    assert sum(len(k) for k in keys.values()) == 20 == len(set.union(*keys.values()))
    assert sum(source.size("prompt", split) for split in keys) == 60


def test_a_system_message_does_not_move_a_question_to_another_split():
    asked = {"role": "user", "content": "Name a bird."}
    system = {"role": "system", "content": "Be brief."}
    keys = {split_key({"prompt": prompt}) for prompt in ([asked], [system, asked])}
    assert keys == {"user: name a bird"}


def test_a_limit_counts_dialogues_not_their_questions(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": f"question {i}", "completion": "a"} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = FileSource(
        path, limit=10, dialogue_turns=3, validation_fraction=0.0, test_fraction=0.0
    )
    assert source.size("demonstration", "train") == 10
    assert len(source.record("demonstration", "train", 9)["messages"]) == 6


def test_a_folder_is_all_its_files_each_of_one_kind(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "b.jsonl").write_text('{"text": "Owls fly."}')
    (tmp_path / "notes.md").write_text("not data")
    source = FileSource(tmp_path, validation_fraction=0, test_fraction=0)
    assert source.kinds == {"prompt", "text"}
    assert source.record("text", "train", 0) == {"text": "Owls fly."}
    assert source.identity()["a.jsonl"] == hashlib.sha256(LINES).hexdigest()


def test_limit_holds_for_each_split(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    source = FileSource(path, limit=5, validation_fraction=0.3, test_fraction=0.3)
    assert [source.size("prompt", s) for s in ("train", "validation", "test")] == [5, 5, 5]
    assert source.size("text", "train") == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            LINES + b"{oops\n",
            r"a\.jsonl:61: must be one JSON object, got b'\{oops' \(.*\)",
        ),
        ("a.jsonl", b"\xff\xfe{}\n", r"a\.jsonl:1: must be one JSON object"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl:1: must be a JSON object, got \[1\]"),
        ("a.jsonl", b"", r"a\.jsonl: must hold at least one record, got an empty file"),
        ("a.jsonl", b"\n \n", r"a\.jsonl: must hold at least one record, got an empty file"),
        ("a.json", b"[]", r"a\.json: must hold at least one record, got an empty file"),
        ("a.json", b"[{]", r"a\.json: must be a JSON array of records"),
        ("a.json", b'[{"text": "a"}, {"text": 3}]', r"a\.json\[1\]: text must be text that is not"),
        (
            "a.csv",
            b'text\n"hello\nhi\n',
            r"a\.csv:1: must be CSV, got unexpected end of data",
        ),
        (
            "a.csv",
            b"prompt,completions\nhi,hello\n",
            r"a\.csv:2: completions must be a list of texts, got 'hello'",
        ),
        (
            "a.csv",
            b"prompt,completion\nhi,hello\nhi there,hello, my friend\n",
            r"a\.csv:3: must have 2 cells like the header, got 3 \(a text with a comma needs quotes\)",
        ),
        ("a.parquet", b"nonsense", r"a\.parquet: must be a Parquet file"),
        ("a.json", b"[" * 100_000, r"a\.json: must be a JSON array of records"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1: must be one JSON object"),
        (
            "a.jsonl.gz",
            gzip.compress(LINES)[:30] + b"no" + gzip.compress(LINES)[32:],
            r"a\.jsonl\.gz: must be a readable \.jsonl file",
        ),
        ("a.jsonl.gz", b"nonsense", r"a\.jsonl\.gz: must be a readable \.jsonl file"),
        (
            "a.md",
            b"hello",
            r"a\.md: must be one of \.jsonl, \.json, \.csv, \.parquet, \.txt .* got '\.md'",
        ),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"prompt": []}\n',
            r"a\.jsonl:2: must be a text like the records before it, got a prompt",
        ),
    ],
)
def test_a_bad_file_is_refused_in_one_line_with_its_place(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        FileSource(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="must be a file or folder, got nothing there"):
        FileSource(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"must hold files of \.jsonl, .* got none"):
        FileSource(tmp_path)


def test_a_column_of_bytes_is_read_as_utf8(tmp_path):
    path = tmp_path / "a.parquet"
    columns = {"prompt": ["Grüezi".encode()], "completion": [b"Hallo"]}
    pq.write_table(pa.table({k: pa.array(v, pa.binary()) for k, v in columns.items()}), path)
    source = FileSource(path, validation_fraction=0.0, test_fraction=0.0)
    messages = source.record("demonstration", "train", 0)["messages"]
    assert [m["content"] for m in messages] == ["Grüezi", "Hallo"]


TABLE = {
    "instruction": ["Name a bird.", "Name a fish.", "Name a tree."],
    "input": ["", "", ""],
    "output": ["", "Cod.", ""],
}


@pytest.mark.parametrize("form", [".csv", ".parquet"])
def test_an_empty_cell_is_an_empty_text_in_the_first_row_and_in_others(tmp_path, form):
    path = tmp_path / f"a{form}"
    if form == ".csv":
        rows = [
            "instruction,input,output",
            "Name a bird.,,",
            "Name a fish.,,Cod.",
            "Name a tree.,,",
        ]
        path.write_text("\n".join(rows) + "\n")
    else:
        null = {key: [text or None for text in texts] for key, texts in TABLE.items()}
        pq.write_table(pa.table({k: pa.array(v, pa.string()) for k, v in null.items()}), path)
    source = FileSource(path, validation_fraction=0.0, test_fraction=0.0)
    assert source.removed == {"empty": 2}
    assert source.size("demonstration", "train") == 1


@pytest.mark.parametrize("form", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("columns", "kinds"),
    [
        ("prompt completion - chosen rejected", {"demonstration", "prompt"}),
        ("prompt - completion", {"prompt"}),
        ("text - messages prompt", {"text"}),
    ],
)
def test_columns_that_are_empty_in_every_row_tell_no_format(tmp_path, form, columns, kinds):
    names, empty = (part.split() for part in columns.split("-"))
    path = tmp_path / f"a{form}"
    rows = [{**{name: f"{name} {i}" for name in names}, **dict.fromkeys(empty)} for i in range(2)]
    if form == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    else:
        schema = pa.schema([(name, pa.string()) for name in rows[0]])
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    source = FileSource(path, validation_fraction=0.0, test_fraction=0.0)
    assert source.kinds == kinds
    assert not source.removed


def test_a_column_of_ours_by_name_may_hold_what_is_theirs(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,rejected,feedback\nHi,Hello.,No.,Nice answer\n")
    source = FileSource(path, validation_fraction=0.0, test_fraction=0.0)
    assert source.record("comparison", "train", 0)["completions"] == ["Hello.", "No."]


def test_files_that_are_converted_share_one_copy(tmp_path):
    for number in range(40):
        (tmp_path / f"{number:02}.txt").write_text(f"Owl {number}.\n\nIt hunts.")
    before = len(os.listdir("/proc/self/fd"))
    source = FileSource(tmp_path, validation_fraction=0.0, test_fraction=0.0)
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    texts = {source.record("text", "train", i)["text"] for i in range(40)}
    assert texts == {f"Owl {number}.\n\nIt hunts." for number in range(40)}


def test_a_copy_that_does_not_fit_and_a_file_without_permission_are_told_in_one_line(
    tmp_path, monkeypatch
):
    class Full(io.BytesIO):
        def write(self, line):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    (tmp_path / "a.txt").write_text("Owls fly.")
    with pytest.raises(UserError, match=r"a\.txt: must be readable, and fit .* No space left"):
        FileSource(tmp_path / "a.txt")
    (tmp_path / "b.jsonl").write_bytes(LINES)
    monkeypatch.setattr(Path, "open", Full().write)
    with pytest.raises(UserError, match=r"b\.jsonl: must be readable"):
        FileSource(tmp_path / "b.jsonl")


def test_a_text_of_one_long_line_is_cut_in_time_that_grows_with_its_length():
    """Ten times the text takes about ten times as long; with a copy of the rest for each piece it was 20 to 50."""
    times = []
    for size in (20_000, 200_000):
        line = "The owl hunts at night. " * size
        begun = time.process_time()
        pieces = list(chunks([line], 1000))
        times.append(time.process_time() - begun)
        assert " ".join(pieces).split() == line.split()
    assert times[1] < 18 * times[0]


def test_a_long_cell_and_a_byte_order_mark_are_no_fault(tmp_path):
    (tmp_path / "a.csv").write_text(f"text\n{'owl ' * 50_000}\n")
    (tmp_path / "b.json").write_bytes(codecs.BOM_UTF8 + b'[{"text": "owl"}]')
    for name in ("a.csv", "b.json"):
        FileSource(tmp_path / name)


def test_messages_beside_a_column_named_prompt_are_the_conversation(tmp_path):
    path = tmp_path / "a.jsonl"
    turns = ["system", "user", "assistant", "user", "assistant"]
    messages = [{"role": role, "content": f"{role} {i}"} for i, role in enumerate(turns)]
    path.write_text(json.dumps({"prompt": "user 1", "prompt_id": "x", "messages": messages}) + "\n")
    source = FileSource(path, validation_fraction=0.0, test_fraction=0.0)
    assert source.record("demonstration", "train", 0)["messages"] == messages
    assert source.record("prompt", "train", 0)["prompt"] == messages[:-1]


def test_a_folder_of_more_files_than_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "OPEN_FILES", 2)
    for i, record in enumerate(PROMPTS):
        (tmp_path / f"{i:02}.jsonl").write_text(json.dumps(record))
    source = FileSource(tmp_path, validation_fraction=0, test_fraction=0)
    found = [source.record("prompt", "train", i)["prompt"][0]["content"] for i in range(60)]
    assert sorted(found) == sorted(record["prompt"][0]["content"] for record in PROMPTS)
    own = [Path(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert sum(f.exists() and f.resolve().parent == tmp_path for f in own) == 2
