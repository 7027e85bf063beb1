"""What every schema uses."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.errors import UserError

MISSING: Any = "???"
"""OmegaConf's mark for a value that the user must choose."""


def require(ok: bool, key: str, rule: str, got: object) -> None:
    """Raises: UserError that says what `key` must be, and what was got."""
    if not ok:
        raise UserError(f"{key} must be {rule}, got {got!r}")
