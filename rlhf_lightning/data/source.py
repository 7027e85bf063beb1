"""What a source of records is, and how one is built from its settings."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection
from typing import Any, Protocol

from rlhf_lightning.config import MixConfig, SourceConfig
from rlhf_lightning.data.files import FileSource
from rlhf_lightning.data.records import KINDS, Record
from rlhf_lightning.errors import UserError


class Source(Protocol):
    """Where records come from. Any importable class with these three members is one.

    Optional members, used where they exist:

        gold(meta, response) -> gold score, or None     the truth about a response, never shown to training
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


def build_source(name: str, config: SourceConfig, mix: MixConfig) -> Source:
    """The source `mix.sources.<name>`.

    Raises: UserError naming the key that is wrong.
    """
    key = f"mix.sources.{name}"
    if (config.target is None) == (config.path is None):
        got = "neither" if config.path is None else "both"
        raise UserError(f"{key} must have either target or path, got {got}")
    if config.limit is not None and config.limit < 1:
        raise UserError(f"{key}.limit must be null or >= 1, got {config.limit}")
    if config.path is not None:
        if config.args:
            raise UserError(
                f"{key}.args must be empty where path is given, got {sorted(config.args)}"
            )
        return FileSource(
            config.path,
            limit=config.limit,
            validation_fraction=mix.validation_fraction,
            test_fraction=mix.test_fraction,
        )
    factory = _import(str(config.target), f"{key}.target")
    try:
        inspect.signature(factory).bind(**config.args)
    except TypeError as error:
        raise UserError(
            f"{key}.args must fit {config.target}, got {config.args} ({error})"
        ) from None
    source = factory(**config.args)
    wrong = set(getattr(source, "kinds", ())) - set(KINDS)
    missing = [m for m in ("kinds", "size", "record") if not hasattr(source, m)]
    if missing or wrong:
        got = f"no {', '.join(missing)}" if missing else f"kinds {sorted(wrong)}"
        raise UserError(f"{key}.target must be a Source with kinds, size and record, got {got}")
    return source


def _import(path: str, key: str) -> Any:
    module, _, attribute = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute) if module else None
    except (ImportError, AttributeError) as error:
        raise UserError(f"{key} must be an importable class, got {path!r} ({error})") from None
    if not callable(found):
        raise UserError(f"{key} must be an importable class, got {path!r}")
    return found
