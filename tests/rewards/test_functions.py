"""The user's function is found, bound, and refused with its key before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.errors import RunFailed, UserError
from rlhf_lightning.rewards.functions import load_function, wants_record
from rlhf_lightning.rewards.text import TextReward
from tests.rewards.requests import request, tokenizer

MINE = "tests.rewards.mine"
KEY = "reward_source.parts.mine"


def test_arguments_are_bound_and_classes_are_made() -> None:
    assert load_function(f"{MINE}.words", {"each": 0.5}, key=KEY)("p", "a b c") == 1.5
    assert load_function(f"{MINE}.Counter", {"letter": "a"}, key=KEY)("p", "banana") == 3
    assert load_function(f"{MINE}.needs_more", {"bonus": 2.0}, key=KEY)("p", "r") == 2


def test_only_a_function_that_asks_for_the_record_gets_it() -> None:
    assert wants_record(load_function(f"{MINE}.of_row", {}, key=KEY))
    assert not wants_record(load_function(f"{MINE}.words", {}, key=KEY))
    assert not wants_record(load_function("math.hypot", {}, key=KEY))  # a built-in


@pytest.mark.parametrize(
    ("target", "args", "expected"),
    [
        ("words", {}, f"{KEY}.target must be the import path of a function or class, got 'words', which has no module"),
        ("no.such.module", {}, f"{KEY}.target must be the import path of a function or class, got 'no.such.module' (Mod"),
        ("no.such.module", {}, "PYTHONPATH=FOLDER names the folder that it is in)"),
        (f"{MINE}.wrds", {}, "(AttributeError: module 'tests.rewards.mine' has no attribute 'wrds')"),
        (f"{MINE}.NUMBER", {}, f"{KEY}.target must be a function or a class"),
        (f"{MINE}.one_text", {}, f"{KEY}.target must be callable as f(prompt, response), got '{MINE}.one_text': too many"),
        (f"{MINE}.needs_more", {}, "missing a required argument: 'bonus'"),
        (f"{MINE}.NotCallable", {}, "whose instances are not"),
        (f"{MINE}.words", {"eech": 1}, f"{KEY}.args must be parameters of {MINE}.words, got {{'eech': 1}}"),
        (f"{MINE}.words", {"prompt": "x"}, "multiple values for argument 'prompt'"),
        (f"{MINE}.Counter", {}, f"{KEY}.args must be what {MINE}.Counter takes, got {{}}"),
        (f"{MINE}.Counter", {"letter": "ab"}, "one letter, not 'ab'"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_reward_is_one_line_with_the_key(
    target: str, args: dict[str, object], expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_function(target, args, key=KEY)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(KEY) and "\n" not in str(caught.value)


def a_list(prompt: str, response: str) -> list[float]:
    return [1.0]


def divides(prompt: str, response: str) -> float:
    return 1 / len(response)


def ends(prompt: str, response: str) -> float:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (a_list, r"^reward_source\.parts\.mine\.target must return one number, got \[1\.0\]$"),
        (divides, r"mine\.target raised ZeroDivisionError: division by zero \(.*test_functions\.py:\d+\)$"),
        (ends, r"mine\.target raised SystemExit: 3 \("),
    ],
)  # fmt: skip
def test_a_function_that_fails_is_one_line_with_the_key_and_the_place(
    function: Any, expected: str
) -> None:
    """It was a traceback of a hundred lines, or the end of the process."""
    with pytest.raises(RunFailed, match=expected) as caught:
        TextReward(function, key=KEY)(request(tokenizer(), [""]))
    assert "\n" not in str(caught.value)


def test_finding_a_function_does_not_load_torch() -> None:
    script = (
        "import sys; from rlhf_lightning.rewards.functions import load_function;"
        "load_function('math.hypot', {}, key='k'); assert 'torch' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True, timeout=60)
