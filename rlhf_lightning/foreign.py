"""What comes from elsewhere, made fit to be read and to be shown."""

from __future__ import annotations

import json
import re
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
