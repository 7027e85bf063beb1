from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest

from rlhf_lightning.runs import (
    Difference,
    canonical_json,
    differences,
    run_hash,
    run_name,
    sha256_file,
    sha256_tree,
)


@dataclasses.dataclass
class Settings:
    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)


def test_canonical_json_is_one_text_for_equal_values():
    assert canonical_json({"b": Settings(), "a": Path("x")}) == (
        '{"a":"x","b":{"betas":[0.9,0.95],"lr":1e-05}}'
    )
    assert canonical_json({"x": 0.1 + 0.2}) == '{"x":0.30000000000000004}'
    assert canonical_json({"ü": {2, 1}}) == '{"ü":[1,2]}'


def test_canonical_json_refuses_what_has_no_stable_text():
    with pytest.raises(TypeError, match="object has no canonical JSON"):
        canonical_json({"x": object()})


def test_run_hash_is_the_head_of_the_sha256_and_ignores_the_order_of_keys():
    expected = hashlib.sha256(b'{"a":1,"b":2}').hexdigest()[:12]
    assert run_hash({"a": 1, "b": 2}) == run_hash({"b": 2, "a": 1}) == expected


def test_run_names_are_fit_for_a_file_system():
    assert run_name("nano", "demo", 0) == "nano-demo-s0"
    assert run_name("org/My Model", "a+b", 3) == "org-My-Model-a-b-s3"


def test_sha256_tree_depends_on_names_and_contents_only(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "sub" / "w").write_text("1")
    (tmp_path / "two" / "manifest.json").write_text("not counted")
    (tmp_path / "two" / "README.md").write_text("not counted")
    (tmp_path / "two" / ".cache").mkdir()
    (tmp_path / "two" / ".cache" / "x").write_text("not counted")
    same = sha256_tree(tmp_path / "one")
    assert sha256_tree(tmp_path / "two") == same
    (tmp_path / "two" / "sub" / "w").rename(tmp_path / "two" / "sub" / "v")
    assert sha256_tree(tmp_path / "two") != same
    assert sha256_file(tmp_path / "one" / "sub" / "w") == hashlib.sha256(b"1").hexdigest()


def test_differences_name_dotted_keys_with_both_values():
    a = {
        "ppo": {"kl_coef": 0.05, "ptx": {"coef": 0.0}},
        "mix": {"sources": {"a": 1}},
        "same": [1, 2],
    }
    b = {"ppo": {"kl_coef": 0.1, "ptx": {"coef": 0.0}}, "mix": {"sources": {}}, "same": (1, 2)}
    found = differences(a, b)
    assert found == [
        Difference("mix.sources", "<absent>", {}),
        Difference("mix.sources.a", 1, "<absent>"),
        Difference("ppo.kl_coef", 0.05, 0.1),
    ]
    assert str(found[2]) == "ppo.kl_coef: 0.05 → 0.1"
    assert differences(a, a) == []
