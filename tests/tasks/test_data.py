"""`task=data`: what is counted of a mix, and the page that it leaves."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from rlhf_lightning import compose
from rlhf_lightning.data.tokenizer import train_tokenizer
from rlhf_lightning.errors import Interrupted, UserError
from rlhf_lightning.runs import Stop
from rlhf_lightning.tasks.data import _share, limits_of, survey
from rlhf_lightning.tasks.data_rows import SHOWN_TOKENS, _shares, pieces, shown_row
from rlhf_lightning.tasks.data_survey import Survey
from tests.harness import only, rlhf_here


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte: 256 bytes and 6 special tokens leave no room for merges."""
    return train_tokenizer(["abc"], vocab_size=262)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def comparison(completions: list[str], ranks: list[int], prompt: str = "Why?") -> dict:
    return {"prompt": user(prompt), "completions": completions, "ranks": ranks}


def surveyed(kind: str, records: list[dict], tokenizer) -> Survey:
    survey = Survey(kind, tokenizer)
    for record in records:  # a batch each: what is counted spans batches
        survey.add([record])
    if repeated := survey.repeated():
        survey.count_labels(records, repeated)
    return survey


def test_lengths_are_those_of_the_encoded_rows(tokenizer) -> None:
    record = {"messages": [*user("Why?"), {"role": "assistant", "content": "So."}]}
    found = surveyed("demonstration", [record], tokenizer).lengths
    # <|begin|> <|user|> Why? <|end|> <|assistant|> = 4 + 4; So. <|end|> = 3 + 1; together 12
    assert {name: dict(x.counts) for name, x in found.items()} == {
        "prompt": {8: 1}, "reply": {4: 1}, "whole": {12: 1}
    }  # fmt: skip
    found = surveyed("comparison", [comparison(["a", "abc", ""], [0, 1, 1])], tokenizer).lengths
    assert dict(found["completion"].counts) == {2: 1, 4: 1, 1: 1}  # with <|end|>
    assert dict(found["whole"].counts) == {10: 1, 12: 1, 9: 1}
    text = surveyed("text", [{"text": "abc"}], tokenizer).lengths["text"]
    assert dict(text.counts) == {5: 1}  # <|begin|> abc <|end|>


def test_duplicates_are_exact_or_near(tokenizer) -> None:
    prompts = [{"prompt": user(text)} for text in ("Why?", "why?", "Why?", "  why? ", "How?")]
    found = surveyed("prompt", prompts, tokenizer)
    assert (found.duplicates, found.near_duplicates) == (1, 3)
    assert sorted(Counter(found.prompts).values()) == [1, 4]


def test_labels_are_no_part_of_a_duplicate_but_completions_are(tokenizer) -> None:
    rows = [
        comparison(["a", "b"], [0, 1]),
        comparison(["a", "b"], [1, 0]),
        comparison(["a", "c"], [0, 1]),
    ]
    assert surveyed("comparison", rows, tokenizer).duplicates == 1


def test_comparisons_are_counted(tokenizer) -> None:
    rows = [
        comparison(["aaaa", "bb", "cc"], [0, 1, 1]),  # longer wins twice; bb and cc tie
        comparison(["a", "bbb"], [0, 1], prompt="How?"),  # shorter wins
        comparison(["a", "b"], [0, 0], prompt="Who?"),  # all tied
        {
            "prompt": user("Where?"),
            "completions": ["a", "b", "c"],
            "pairs": [[0, 1]],
        },  # equal length
    ]
    counts = surveyed("comparison", rows, tokenizer).comparisons
    assert counts is not None
    assert counts.completions == {3: 2, 2: 2}
    # ranked pairs 3 + 1 + 1, tied 1 + 0 + 1; the record with pairs ranks nothing
    assert (counts.tied, counts.ranked_pairs, counts.all_tied) == (2, 5, 1)
    assert (counts.decided, counts.longer, counts.shorter, counts.equal) == (4, 2, 1, 1)
    assert counts.labels == 0


def test_agreement_is_over_records_that_compare_the_same_texts_in_any_order(tokenizer) -> None:
    rows = [
        comparison(["a", "b", "c"], [0, 1, 2]),
        comparison(["c", "b", "a"], [1, 2, 0]),  # a > c > b: agrees on ab and ac, not on bc
        comparison(["a", "b", "c"], [0, 0, 1]),  # a = b, both > c
        comparison(["a", "b"], [1, 0]),  # other texts: another comparison
    ]
    counts = surveyed("comparison", rows, tokenizer).comparisons
    assert counts is not None
    # ab 2:0 → 1 of 1; ac 3:0 → 3 of 3; bc 2:1 → 1 of 3
    assert (counts.alike, counts.labels) == (5, 7)


def test_copies_of_a_text_inside_one_record_are_one_label(tokenizer) -> None:
    rows = [comparison(["a", "a", "b"], [0, 0, 1])] * 2
    counts = surveyed("comparison", rows, tokenizer).comparisons
    assert counts is not None
    assert (counts.alike, counts.labels) == (1, 1)
    torn = [comparison(["a", "a", "b"], [0, 2, 1])] * 2  # a is better and worse than b: no label
    counts = surveyed("comparison", torn, tokenizer).comparisons
    assert counts is not None
    assert counts.labels == 0


def test_rows_are_shown_token_by_token_with_their_mask(tokenizer) -> None:
    record = {"messages": [*user("é!"), {"role": "assistant", "content": "No"}], "source": "mine"}
    row = shown_row("demonstration", record, 5, tokenizer, {"whole": ("sft.max_length", 9)})
    (text,) = row.texts
    assert [piece.text for piece in text.pieces] == [
        "<|begin|>", "<|user|>", "é", "!", "<|end|>", "<|assistant|>", "N", "o", "<|end|>"
    ]  # fmt: skip
    assert [len(piece.ids) for piece in text.pieces] == [
        1,
        1,
        2,
        1,
        1,
        1,
        1,
        1,
        1,
    ]  # é has two bytes
    assert [piece.target for piece in text.pieces] == [False] * 6 + [True] * 3
    assert [i for i, piece in enumerate(text.pieces) if piece.special] == [0, 1, 4, 5, 8]
    assert (text.tokens, row.source, row.note) == (10, "mine", "longer than sft.max_length=9")


@pytest.mark.parametrize("kind", ["demonstration", "comparison", "prompt", "text"])
def test_a_row_that_is_cut_is_shown_as_it_is_trained_on(kind: str, tokenizer) -> None:
    long = "An otter swims. " * 9
    record = {
        "demonstration": {"messages": [*user("Who?"), {"role": "assistant", "content": long}]},
        "comparison": comparison([long, "Me."], [0, 1]),
        "prompt": {"prompt": user(long)},
        "text": {"text": long},
    }[kind]
    name = {"prompt": "prompt", "text": "text"}.get(kind, "whole")
    limits = {name: ("its.limit", 60)}
    kept = shown_row(kind, record, 0, tokenizer, limits, "drop")
    assert (kept.note, max(t.tokens for t in kept.texts) > 60) == ("longer than its.limit=60", True)
    cut = shown_row(kind, record, 0, tokenizer, limits, "cut")
    assert cut.note == "cut, was longer than its.limit=60"
    shown = "".join(piece.text for text in cut.texts for piece in text.pieces)
    assert "An otter swims. An otter swims." in shown
    assert all(text.tokens <= 60 for text in cut.texts)
    hopeless = shown_row(kind, record, 0, tokenizer, {name: ("its.limit", 9)}, "cut")
    assert hopeless.note == "longer than its.limit=9"


def test_a_kind_with_few_rows_leaves_its_places_to_the_others() -> None:
    assert _shares(20, {"a": 100, "b": 3, "c": 100}) == {"a": 8, "b": 3, "c": 9}
    assert _shares(20, {"a": 5, "b": 6}) == {"a": 5, "b": 6}
    assert _shares(2, {"a": 9, "b": 9, "c": 9}) == {"a": 0, "b": 1, "c": 1}


def test_pieces_put_together_are_the_text(tokenizer) -> None:
    text = "snow ☃ and 🦊🦊 ok"
    ids = tokenizer(text)["input_ids"]
    found = pieces(tokenizer, ids, [False] * len(ids))
    assert "".join(piece.text for piece in found) == text
    assert [i for piece in found for i in piece.ids] == ids
    half = pieces(tokenizer, ids[:6], [False] * 6)  # ends inside the snowman
    assert [piece.text for piece in half][-1].startswith("\ufffd")


def test_a_comparison_shows_each_completion_with_its_rank_or_pairs(tokenizer) -> None:
    row = shown_row("comparison", comparison(["a", "b"], [1, 0]), 0, tokenizer, {})
    assert [text.label for text in row.texts] == ["completion 0, rank 1", "completion 1, rank 0"]
    record = {"prompt": user("x"), "completions": ["a", "b", "c"], "pairs": [[0, 1], [0, 2]]}
    row = shown_row("comparison", record, 0, tokenizer, {})
    assert [text.label for text in row.texts] == [
        "completion 0, better than 1, 2",
        "completion 1",
        "completion 2",
    ]
    assert [piece.target for piece in row.texts[0].pieces][-3:] == [False, True, True]  # a <|end|>


def test_what_a_row_does_not_show_is_counted(tokenizer) -> None:
    row = shown_row("text", {"text": "x" * 2000}, 0, tokenizer, {})
    (text,) = row.texts
    # begin + 2000 + end
    assert (text.tokens, text.hidden, len(text.pieces)) == (2002, 2002 - SHOWN_TOKENS, SHOWN_TOKENS)


def write(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_command_leaves_a_page_and_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "p.jsonl", [{"prompt": user(f"<i>Question {i}</i>?")} for i in range(40)])
    write(
        tmp_path / "c.jsonl",
        [comparison(["yes", "nooo"], [0, 1], f"Is it {i}?") for i in range(40)],
    )
    sources = [f"mix.sources.{n}.path={tmp_path / n}.jsonl" for n in ("p", "c")]
    found = rlhf_here(
        f"outputs={tmp_path / 'outputs'}", "task=data", "mix=files", *sources, "data.rows=6"
    )
    # 40 prompts, 40 comparisons, and the prompts of these
    assert found == {"data/records": 120.0}
    folder = only(tmp_path / "outputs" / "data")
    assert sorted(p.name for p in folder.iterdir()) == ["data.json", "report.html"]
    parts = json.loads((folder / "data.json").read_text())["parts"]
    assert sum(part["read"] for part in parts if part["kind"] == "comparison") == 40
    assert all(part["size"] == part["read"] for part in parts)
    shares: Counter[tuple[str, str]] = Counter()
    for part in parts:
        shares[part["kind"], part["split"]] += part["mix_share"]
    assert all(share == pytest.approx(1) for share in shares.values())
    assert all(
        not p["comparisons"]["longer_wins_share"] for p in parts if p["kind"] == "comparison"
    )
    html = (folder / "report.html").read_text()
    assert html.count('<article class="row">') == 6
    assert "<i>Question" not in html
    said = capsys.readouterr().out
    assert "Comparisons" in said and f"data: {folder / 'report.html'}" in said
    assert not (tmp_path / "outputs" / "latest").exists()


def test_a_comparison_that_stands_several_times_may_be_several_labels(tmp_path: Path) -> None:
    first = {"prompt": "Which?", "chosen": "A", "rejected": "B"}
    write(tmp_path / "labels.jsonl", [first] * 4 + [{**first, "chosen": "B", "rejected": "A"}])

    def counted(name: str, *overrides: str) -> tuple[int, float, int]:
        mine = f"mix.sources.m.path={tmp_path / 'labels.jsonl'}"
        rlhf_here("task=data", f"run_dir={tmp_path / name}", "mix=files", mine, *overrides)
        parts = json.loads((tmp_path / name / "data.json").read_text())["parts"]
        (part,) = [part for part in parts if part["kind"] == "comparison"]
        found = part["comparisons"]
        return part["read"], found["label_agreement"], found["label_pairs"]

    assert counted("once") == (2, 0.0, 1)
    # of ten pairs of five labels, six are of the four that agree
    assert counted("each", "mix.sources.m.keep_repeats=true") == (5, 0.6, 10)


def test_an_endless_source_is_sampled_and_the_page_says_so(tmp_path: Path) -> None:
    rlhf_here("task=data", f"run_dir={tmp_path / 'here'}", "data.records=12", "data.rows=4")
    parts = json.loads((tmp_path / "here" / "data.json").read_text())["parts"]
    assert len(parts) == 12 and all(p["read"] == 12 and p["size"] is None for p in parts)
    html = (tmp_path / "here" / "report.html").read_text()
    assert "makes records without end; the numbers are those of the first 12" in html


def test_the_seed_draws_the_rows(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", [{"prompt": user(f"Question {i}?")} for i in range(60)])
    mine = ["mix=files", f"mix.sources.p.path={tmp_path / 'p.jsonl'}", "data.rows=5"]

    def page(name: str, *overrides: str) -> str:
        rlhf_here("task=data", f"run_dir={tmp_path / name}", *mine, *overrides)
        html = (tmp_path / name / "report.html").read_text()
        return html[html.index("Rows as the model") : html.index("Provenance")]

    first = page("a")
    assert first == page("a")  # the same place again: replaced
    assert first != page("b", "seed=1")


class Leaky:
    """Held-out prompts of which some are training prompts."""

    kinds = ("prompt",)
    said: ClassVar = {"train": ["a", "b", "b"], "validation": ["B", "c", "b "], "test": []}

    def size(self, kind: str, split: str) -> int:
        return len(self.said[split])

    def record(self, kind: str, split: str, index: int) -> dict:
        return {"prompt": user(self.said[split][index])}


def leaky_mix() -> tuple[SimpleNamespace, Any]:
    root = compose.check(
        compose.compose(
            [
                "mix=files",
                "mix.sources.x.path=x",
                "mix.sources.y.path=y",
                "mix.sources.y.limit=2",
                "mix.weights.y=3",
            ]
        )
    )
    source, limits = Leaky(), {"x": 3, "y": 2}
    mixture = SimpleNamespace(
        sources=limits,
        kinds_of=lambda _name: source.kinds,
        size_of=lambda name, kind, split: min(source.size(kind, split), limits[name]),
        record_of=lambda _name, kind, split, place: source.record(kind, split, place),
    )
    return mixture, root


def test_what_the_mix_leaves_out_is_not_counted(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}?", "completion": "Yes."} for i in range(30)]
    write(tmp_path / "p.jsonl", rows)
    rlhf_here(
        "task=data",
        f"run_dir={tmp_path / 'here'}",
        "mix=files",
        f"mix.sources.p.path={tmp_path / 'p.jsonl'}",
        "mix.sources.p.kinds.prompt=false",
    )
    parts = json.loads((tmp_path / "here" / "data.json").read_text())["parts"]
    assert {part["kind"] for part in parts} == {"demonstration"}
    assert sum(part["read"] for part in parts) == 30


def test_a_test_file_is_held_against_another_training_file(tmp_path: Path) -> None:
    """The mix takes prompts out of training; raw text it does not compare, and the page tells what both have."""
    for name, texts in {"train": range(8), "a_test": range(5, 9)}.items():
        write(tmp_path / f"{name}.jsonl", [{"text": f"The owl {i} hunts."} for i in texts])
    rlhf_here(
        "task=data",
        f"run_dir={tmp_path / 'here'}",
        "mix=files",
        f"mix.root={tmp_path}",
        *("mix.sources.train.path=train.jsonl", "mix.sources.train.split=train"),
        *("mix.sources.a_test.path=a_test.jsonl", "mix.sources.a_test.split=test"),
    )
    parts = json.loads((tmp_path / "here" / "data.json").read_text())["parts"]
    found = {part["source"]: (part["split"], part["prompts_in_train"]) for part in parts}
    assert found == {"train": ("train", None), "a_test": ("test", 3)}


def test_shares_limits_and_held_out_prompts_that_training_has_too(tokenizer) -> None:
    mixture, root = leaky_mix()
    parts = survey(root, mixture, tokenizer, Stop())  # type: ignore[arg-type]
    found = {(p.source, p.split): (p.read, p.mix_share, p.prompts_in_train) for p in parts}
    # x: B and "b " are b; y: the first two of each, train a and b, validation B and c
    assert found == {
        ("x", "train"): (3, 0.25, None),
        ("x", "validation"): (3, 0.6, 2),  # held out, each record counts once
        ("y", "train"): (2, 0.75, None),
        ("y", "validation"): (2, 0.4, 1),
    }


def test_shares_of_sources_that_are_off_or_never_end() -> None:
    key = ("a", "prompt", "test")
    sizes = {key: 3, ("b", "prompt", "test"): 1, ("c", "text", "test"): 9}
    assert _share({}, sizes, key) == 0.75
    assert _share({"b": 0}, sizes, key) == 1
    assert _share({"a": 0}, sizes, key) == 0
    endless = {**sizes, ("b", "prompt", "test"): None}
    assert _share({}, endless, key) is None  # first by turns, then the endless one alone
    assert _share({"b": 0}, endless, key) == 1
    assert _share({"b": 3}, {key: None, ("b", "prompt", "test"): None}, key) == 0.25


def test_a_reply_that_is_longer_than_sft_takes_is_shown_as_such(tokenizer) -> None:
    root = compose.check(compose.compose(["sft.max_reply_tokens=5"]))
    limits = limits_of(root)["demonstration"]
    assert limits["reply"] == ("sft.max_reply_tokens", 5)
    for reply, over in (("ab", ""), ("the fox eats meat", "longer than sft.max_reply_tokens=5")):
        messages = [
            {"role": "user", "content": "who eats what in the wood, and who does not"},
            {"role": "assistant", "content": "the fox eats meat in the wood"},
            {"role": "user", "content": "and"},
            {"role": "assistant", "content": reply},
        ]
        row = shown_row("demonstration", {"messages": messages}, 0, tokenizer, limits)
        assert row.note == over


def test_a_signal_ends_the_reading(tokenizer) -> None:
    mixture, root = leaky_mix()
    stop = Stop()
    stop.requested = 15
    with pytest.raises(Interrupted):
        survey(root, mixture, tokenizer, stop)  # type: ignore[arg-type]


def test_a_word_piece_tokenizer_keeps_its_spaces() -> None:
    """One that writes spaces as ▁ drops the first one of what it decodes: pieces are read in context."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"<s>": 0, "\u2581the": 1, "\u2581fox": 2, "es": 3}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    found = pieces(
        PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>"), [1, 2, 3, 1], [True] * 4
    )
    assert [piece.text for piece in found] == ["the", " fox", "es", " the"]


def test_a_page_replaces_a_page_and_nothing_else(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    rows = [{"prompt": f"Question {i}?"} for i in range(30)]
    (mine / "data.json").write_text(json.dumps(rows))
    source = ["mix=files", f"mix.sources.p.path={mine / 'data.json'}"]
    with pytest.raises(UserError, match="run_dir must be empty or hold a page of task=data"):
        rlhf_here("task=data", f"run_dir={mine}", *source)
    assert json.loads((mine / "data.json").read_text()) == rows
    for _ in range(2):
        rlhf_here("task=data", f"run_dir={tmp_path / 'page'}", *source)


def test_the_place_of_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text("{}")
    with pytest.raises(UserError, match="run_dir must be empty or hold a page of task=data"):
        rlhf_here("task=data", f"run_dir={tmp_path}")
    with pytest.raises(UserError, match=r"run_dir must be a place that can be written"):
        rlhf_here("task=data", f"run_dir={tmp_path / 'identity.json' / 'deep'}")
    with pytest.raises(UserError, match=r"data\.records must be >= 1, got 0"):
        rlhf_here("task=data", "data.records=0")
