"""What a source of records is, and how one is built from its settings."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from rlhf_lightning.config import MixConfig, SourceConfig
from rlhf_lightning.data.adapted import AdaptedSource
from rlhf_lightning.data.files import FileSource
from rlhf_lightning.data.hub import HubDataset, HubSource
from rlhf_lightning.data.index import HeldOut, Rules
from rlhf_lightning.data.records import KINDS, Record
from rlhf_lightning.errors import UserError
from rlhf_lightning.foreign import imported, made


class Source(Protocol):
    """Where records come from. Any importable class with these three members is one.

    Optional members, used where they exist:

        gold(meta, response) -> gold score, or None     the truth about a response, never shown to training:
                                                        a number, or `total` (and helpful, truthful, harmless)
        rank(record, completions, *, split, index) -> ranks (0 = best), or None     a simulated labeler
        reworded(record) -> the same request in other words, or None
        answer_items(meta, response) -> what it asserts, comparable with ==, or None
        is_refusal(meta, response) -> does it decline?     should_refuse(meta) -> should it?
        labeler_agreement() -> how often two of its labelers order a pair alike
        identity() -> dict     what determines the records beside the arguments, e.g. sha256 of files
    """

    @property
    def kinds(self) -> Collection[str]:
        """Subset of demonstration, comparison, prompt, text."""
        ...

    def size(self, kind: str, split: str) -> int | None:
        """Records of that kind in train, validation or test; None: endless."""
        ...

    def record(self, kind: str, split: str, index: int) -> Record:
        """The record at `index`: always the same one."""
        ...


@dataclass(frozen=True)
class Total:
    """A gold score without parts."""

    total: float


def verdict(found: Any, key: str) -> Any:
    """A source's gold score as an object with a finite `total`. Raises: UserError if it cannot be one."""
    score = Total(float(found)) if isinstance(found, Real) else found
    if not math.isfinite(getattr(score, "total", math.nan)):  # NaN would lose every comparison
        raise UserError(
            f"{key}: gold must return a finite number, an object with such a `total` or None, got {found!r:.80}"
        )
    return score


def build_source(
    name: str, config: SourceConfig, mix: MixConfig, held_out: HeldOut | None = None
) -> Source:
    """The source `mix.sources.<name>`; of a file or dataset, what others have `held_out` is in no other split.

    Raises: UserError naming the key that is wrong.
    """
    key = f"mix.sources.{name}"
    given = [k for k in ("path", "hub", "target") if getattr(config, k) is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise UserError(f"{key} must have one of path, hub and target, got {got}")
    if config.limit is not None and config.limit < 1:
        raise UserError(f"{key}.limit must be null or >= 1, got {config.limit}")
    if config.target is None:
        return _adapted(key, config, mix, held_out or {})
    for option in ("format", "split", "dialogue_turns", "keep_repeats"):
        value = getattr(config, option)
        if value != getattr(SourceConfig, option):
            raise UserError(f"{key}.{option} must go with path or hub, got {value} beside target")
    factory = imported(str(config.target), key)
    if not callable(factory):
        raise UserError(f"{key}.target must be an importable class, got {config.target!r}")
    try:
        inspect.signature(factory).bind(**config.args)
    except TypeError as error:
        raise UserError(
            f"{key}.args must fit {config.target}, got {config.args} ({error})"
        ) from None
    source = made(factory, str(config.target), config.args, key)
    wrong = set(getattr(source, "kinds", ())) - set(KINDS)
    missing = [m for m in ("kinds", "size", "record") if not hasattr(source, m)]
    if missing or wrong:
        got = f"no {', '.join(missing)}" if missing else f"kinds {sorted(wrong)}"
        raise UserError(f"{key}.target must be a Source with kinds, size and record, got {got}")
    return source


def _adapted(key: str, config: SourceConfig, mix: MixConfig, held_out: HeldOut) -> AdaptedSource:
    rules = Rules(
        mix.validation_fraction,
        mix.test_fraction,
        mix.held_out_prompts,
        held_out,
        config.split,
        config.limit,
        config.keep_repeats,
    )
    shared: dict[str, Any] = {
        "rules": rules,
        "format_name": config.format,
        "args": config.args,
        "dialogue_turns": config.dialogue_turns,
        "key": key,
    }
    if config.hub is not None:
        dataset = HubDataset(config.hub, config.hub_config, config.hub_split, config.hub_revision)
        return HubSource(dataset, **shared)
    return FileSource(_path(key, str(config.path), mix.root), **shared)


def _path(key: str, path: str, root: str | None) -> Path:
    """Where a file is. A relative path that leads nowhere is told with its key and with what it was taken for."""
    if not path.strip():
        raise UserError(f"{key}.path must be a file or folder, got {path!r}")
    found = Path(path).expanduser()
    if not found.is_absolute():
        found = Path(root or ".").expanduser() / found
        if not found.exists():
            raise UserError(
                f"{key}.path must be a file or folder under mix.root={root or 'null'}, got {path!r}: "
                f"nothing at {found.absolute()}"
            )
    return found
