"""What comes from elsewhere: text, made fit to be read and to be shown; functions and classes, found by their path."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""C0 but tab and line break, DEL, C1, and what turns the direction of text over."""


def without_controls(text: str) -> str:
    """Text with a picture or number for each control character, which a terminal or a browser would obey."""
    return _CONTROLS.sub(_shown, text)


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 32 else f"\\u{code:04x}"


def object_of(path: Path) -> dict[str, Any]:
    """The object in a JSON file of somebody else's. Raises: UserError that names the file if it holds none."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        lfs = text.startswith("version https://git-lfs")
        hint = "a pointer of Git LFS (git lfs pull)" if lfs else repr(text[:40])
        raise UserError(f"{path}: must hold a JSON object, got {hint}")
    return value


def imported(target: str, key: str) -> Any:
    """What an import path of the user's leads to.

    Raises: UserError that begins with `key` (such as mix.sources.mine) if nothing can be imported there.
    """
    rule = f"{key}.target must be the import path of a function or class, got {target!r}"
    module, _, name = target.rpartition(".")
    if not module:
        raise UserError(f"{rule}, which has no module")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a module of the user's raises
        reason = " ".join(str(error).split())
        # itself, and not a module that it imports
        lost = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        hint = "; PYTHONPATH=FOLDER names the folder that it is in" if lost else ""
        raise UserError(f"{rule} ({type(error).__name__}: {reason}{hint})") from error


def edited_since(settings: Any, moment: float) -> list[Path]:
    """Files of the functions and classes that settings name (each `target`) which were changed after a moment (seconds,
    as files have it); those of this project are not looked at."""
    found = {_file_of(target) for target in _targets(settings)}
    own = Path(__file__).parent
    return sorted(f for f in found if f and own not in f.parents and f.stat().st_mtime > moment)


def _targets(settings: Any) -> Iterator[str]:
    if isinstance(settings, Mapping):
        if isinstance(target := settings.get("target"), str):
            yield target
        for value in settings.values():
            yield from _targets(value)


def _file_of(target: str) -> Path | None:
    """The file of an import path's module; None where there is none (or none any more)."""
    try:
        spec = importlib.util.find_spec(target.rpartition(".")[0])
    except (ImportError, ValueError):
        return None
    file = None if spec is None or spec.origin is None else Path(spec.origin)
    return file if file is not None and file.is_file() else None


def made(cls: Any, target: str, args: Mapping[str, Any], key: str) -> Any:
    """The instance of a class of the user's.

    Raises: UserError that begins with `key` if the class does not take `args`, or raises anything itself.
    """
    try:
        return cls(**args)
    except Exception as error:  # likewise
        reason = " ".join(str(error).split())
        raise UserError(
            f"{key}.args must be what {target} takes, got {dict(args)!r} ({reason})"
        ) from error
