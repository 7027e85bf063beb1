import codecs
import csv
import gzip
import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_lightning.data.files import FileSource
from rlhf_lightning.data.records import prompt_key
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
        (
            "a.json",
            b'[{"text": "a"}, {"text": ""}]',
            r"a\.json\[1\]: text must be text that is not empty",
        ),
        ("a.csv", b'text\nhello\n" "\n', r"a\.csv:3: text must be text that is not empty"),
        (
            "a.csv",
            b"prompt,completions\nhi,hello\n",
            r"a\.csv:2: completions must be JSON, got 'hello'",
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
            "a.csv",
            b"prompt,completion\nhi,\nhi,hello\n",
            r"a\.csv:3: a prompt must not have 'completion' \(the file's first row showed a prompt",
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
