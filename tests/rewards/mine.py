"""Reward functions as a user would write them."""

from __future__ import annotations

from typing import Any


def words(prompt: str, response: str, *, each: float = 1.0) -> float:
    return each * len(response.split())


def of_row(prompt: str, response: str, record: dict[str, Any]) -> float:
    return float(record["meta"]["row"])


def no_number(prompt: str, response: str) -> float:
    return float("nan")


def one_text(response: str) -> float:
    return 0.0


def needs_more(prompt: str, response: str, *, bonus: float) -> float:
    return bonus


class Counter:
    def __init__(self, *, letter: str) -> None:
        if len(letter) != 1:
            raise ValueError(f"one letter, not {letter!r}")
        self.letter = letter

    def __call__(self, prompt: str, response: str) -> float:
        return float(response.count(self.letter))


class Anything:
    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def __call__(self, prompt: str, response: str) -> float:
        return 0.0


class NotCallable:
    pass


NUMBER = 3
