"""Prompts of a file: which rows are prompts, and what a bad one is told."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rlhf_lightning.data.prompt_file import prompt_row, read_prompts, require_prompt_file
from rlhf_lightning.errors import UserError

USER = {"role": "user", "content": "Name a bird."}
REPLY = {"role": "assistant", "content": "Owl."}


@pytest.mark.parametrize(
    ("record", "prompt", "left_out"),
    [
        ({"prompt": "Name a bird."}, [USER], False),
        ({"prompt": "\n\nHuman: Name a bird.\n\nAssistant:"}, [USER], False),
        ({"prompt": [USER, REPLY, USER]}, [USER, REPLY, USER], False),
        ({"messages": [USER]}, [USER], False),
        ({"messages": [USER, REPLY]}, [USER], True),
        ({"prompt": [USER], "completions": ["a", "b"], "ranks": [0, 1]}, [USER], False),
    ],
)
def test_every_form_of_a_row_becomes_the_messages_of_a_prompt(record, prompt, left_out):
    row = prompt_row(record, index=3, where="f:4")
    assert (row.record["prompt"], row.reply_left_out, row.index) == (prompt, left_out, 3)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "x"}, "f:4: must have the key prompt or messages, got ['text']"),
        ([1], "f:4: must be a JSON object, got [1]"),
        ({"prompt": "  "}, "f:4: prompt[0].content must be text that is not empty, got '  '"),
        ({"prompt": [USER, REPLY]}, "f:4: a prompt must end before the assistant speaks"),
        ({"messages": [REPLY]}, "f:4: prompt must be a list of messages that is not empty, got []"),
        ({"prompt": [{"role": "bot", "content": "x"}]}, "f:4: prompt[0].role must be one of"),
    ],
)
def test_a_row_that_is_no_prompt_is_refused_with_its_place(record, message):
    with pytest.raises(UserError) as caught:
        prompt_row(record, index=0, where="f:4")
    assert str(caught.value).startswith(message)


def test_text_files_hold_a_prompt_a_line_and_empty_lines_count_for_places_only(tmp_path: Path):
    (tmp_path / "a.txt").write_text("Name a bird.\n\n  Name a fish.\r\n")
    rows = list(read_prompts(tmp_path / "a.txt"))
    assert [row.record["prompt"][0]["content"] for row in rows] == [
        "Name a bird.",
        "  Name a fish.",
    ]
    assert [(row.index, row.where.rsplit(":", 1)[1]) for row in rows] == [(0, "1"), (1, "3")]


def test_packed_files_are_read_and_broken_ones_refused(tmp_path: Path):
    good, broken = tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"
    good.write_bytes(gzip.compress(json.dumps({"prompt": "x"}).encode()))
    broken.write_bytes(good.read_bytes()[:-4])
    assert len(list(read_prompts(good))) == 1
    with pytest.raises(UserError, match=r"b\.jsonl\.gz: must be a readable \.jsonl file"):
        list(read_prompts(broken))
    (tmp_path / "c.jsonl").write_text('{"prompt": "x"}\n{"prompt"\n')
    with pytest.raises(UserError, match=r"c\.jsonl:2: must be one JSON object"):
        list(read_prompts(tmp_path / "c.jsonl"))


def test_a_file_is_read_row_by_row(tmp_path: Path):
    """The first row comes although the second is bad: nothing reads ahead."""
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\nbad\n')
    rows = read_prompts(tmp_path / "a.jsonl")
    assert next(rows).index == 0
    with pytest.raises(UserError, match=":2:"):
        next(rows)


def test_what_is_no_prompt_file_is_refused_by_its_name(tmp_path: Path):
    (tmp_path / "a.csv").write_text("x")
    for name, what in (
        ("a.csv", "got .*csv"),
        ("no.jsonl", "does not exist"),
        (".", "is not a file"),
    ):
        with pytest.raises(UserError, match=f"^input must be a file of .*{what}"):
            require_prompt_file(tmp_path / name)
