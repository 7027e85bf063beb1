"""Finding the user's reward function by its import path, and whether it can be called as one.

Nothing here imports torch: it is done before anything is loaded, and what is wrong is one line with the key.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rlhf_lightning.errors import RunFailed, UserError
from rlhf_lightning.foreign import imported, made

Function = Callable[..., float]


def load_function(target: str, args: Mapping[str, Any], *, key: str) -> Function:
    """The function at an import path with `args` bound, or the instance of a class that is made from `args`.

    Raises: UserError that begins with `key` (such as reward_source.parts.mine) if there is nothing at `target`, it does
    not take `args`, or it cannot be called as f(prompt, response).
    """
    found = imported(target, key)
    if not callable(found):
        raise UserError(f"{key}.target must be a function or a class, got {target!r}")
    function: Any = partial(found, **args)
    if inspect.isclass(found):
        function = made(found, target, args, key)
    _require_two_texts(function, target, args, key)
    return function


def wants_record(function: Callable[..., Any]) -> bool:
    """Whether it has a parameter `record`: the prompt's source record, its `meta` included."""
    try:
        parameter = inspect.signature(function).parameters.get("record")
    except (TypeError, ValueError):  # a built-in that does not tell
        return False
    return parameter is not None and parameter.kind is not parameter.POSITIONAL_ONLY


def call_function(
    function: Function, prompt: str, response: str, record: Mapping[str, Any], *, key: str
) -> float:
    """The score of one response, by a function that may or may not want the record.

    Raises: RunFailed that begins with `key` if the function raises anything, or returns no number.
    """
    named = {"record": record} if wants_record(function) else {}
    try:
        found = function(prompt, response, **named)
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())
        raise RunFailed(
            f"{key}.target raised {type(error).__name__}: {reason} ({_last_line(error)})"
        ) from error
    try:
        return float(found)
    except (TypeError, ValueError):
        raise RunFailed(f"{key}.target must return one number, got {found!r:.60}") from None


def _last_line(error: BaseException) -> str:
    """Where the error was raised: file and line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"


def _require_two_texts(function: Any, target: str, args: Mapping[str, Any], key: str) -> None:
    rule = f"{key}.target must be callable as f(prompt, response), got {target!r}"
    if not callable(function):
        raise UserError(f"{rule}, whose instances are not")
    try:
        signature = inspect.signature(function.func if isinstance(function, partial) else function)
    except (TypeError, ValueError):  # a built-in that does not tell
        return
    bound = dict(args) if isinstance(function, partial) else {}
    try:
        signature.bind_partial(**bound)
    except TypeError as error:
        raise UserError(
            f"{key}.args must be parameters of {target}, got {bound!r}: {error}"
        ) from None
    named = bound | ({"record": {}} if wants_record(function) else {})
    try:
        signature.bind("", "", **named)
    except TypeError as error:
        raise UserError(f"{rule}: {error}") from None
