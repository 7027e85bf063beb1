"""A source over rows of any known format: each is adapted once to see what it holds, and again when it is read."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from rlhf_lightning.data import formats
from rlhf_lightning.data.formats import Format, Removed
from rlhf_lightning.data.formats.base import Adapted
from rlhf_lightning.data.index import Found, HeldOut, Places, Rules, settle, together
from rlhf_lightning.data.records import (
    KINDS,
    SPLITS,
    Record,
    key_hash,
    prompt_key,
    prompt_of,
    split_key,
    validate,
)
from rlhf_lightning.errors import UserError

_SINGLE = "single"
"""Demonstrations of one question and one answer, kept apart where they are to be strung into dialogues."""


class Rows(Protocol):
    """Rows that can be read again from where they lie."""

    removed: Counter[str]

    def scan(self) -> Iterator[tuple[str, tuple[int, int, int], Any]]:
        """Where (for messages), (file, start, length) and content of every row; rows of a file follow each other."""
        ...

    def read(self, file: int, start: int, length: int) -> Any:
        """One row. Threads may read at the same time."""
        ...


class AdaptedSource:
    """A `Source`: demonstrations, comparisons, prompts and text of rows in a known format.

    They are split by prompt, or all of one split.
    Every comparison and demonstration also gives its prompt, each distinct prompt once. In memory is a record's place.
    Raises: UserError for a row of no known format, one that breaks the rules, or an option that no format takes.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        rules: Rules,
        format_name: str | None = None,
        args: Mapping[str, Any] | None = None,
        dialogue_turns: int = 1,
        key: str = "source",
    ) -> None:
        self._rows, self._turns, self._key = rows, dialogue_turns, key
        self._args = dict(args or {})
        self._fixed = None if format_name is None else formats.named(format_name, f"{key}.format")
        self._formats: dict[int, tuple[Format, dict[str, Any]]] = {}
        self.removed: Counter[str] = Counter()
        """Reason → how many records (or parts of rows) were left out."""
        self._places: dict[tuple[str, str], Places] = {}
        self._require_known_args()
        self._settle(self._scan(), rules)

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset("demonstration" if k == _SINGLE else k for k, _ in self._places)

    def size(self, kind: str, split: str) -> int:
        own = len(self._places.get((kind, split), ()))
        if kind != "demonstration":
            return own
        return own + -(-len(self._places.get((_SINGLE, split), ())) // self._turns)

    def record(self, kind: str, split: str, index: int) -> Record:
        places = self._places.get((kind, split), ())
        if index < len(places):
            return self._at(kind, places[index])  # type: ignore[index]
        singles, start = self._places[_SINGLE, split], (index - len(places)) * self._turns
        stop = min(start + self._turns, len(singles))
        parts = [self._at("demonstration", singles[i]) for i in range(start, stop)]
        return {"messages": [message for part in parts for message in part["messages"]]}

    def held_out(self, kinds: Collection[str] = KINDS) -> HeldOut:
        """Key hashes of the validation and test prompts of records of these kinds."""
        return together(held for kind, held in self._held_out if kind in kinds)

    def _require_known_args(self) -> None:
        known = {name for f in formats.FORMATS for name in formats.options_of(f)}
        known |= {"strip_gutenberg"}
        for name in sorted(set(self._args) - known):
            raise UserError(f"{self._key}.args must be some of {sorted(known)}, got {name!r}")
        strip = self._args.get("strip_gutenberg", True)
        if not isinstance(strip, bool):
            raise UserError(
                f"{self._key}.args.strip_gutenberg must be true or false, got {strip!r}"
            )
        for known_format in formats.FORMATS if self._fixed is None else (self._fixed,):
            formats.options_for(known_format, self._args, f"{self._key}.args")

    def _format(self, file: int, row: Any, where: str) -> tuple[Format, dict[str, Any]]:
        if file not in self._formats:
            found = self._fixed or formats.format_of(row, where)
            options = formats.options_for(found, self._args, f"{self._key}.args")
            self._formats[file] = (found, options)
        return self._formats[file]

    def _scan(self) -> dict[str, Found]:
        found: dict[str, Found] = defaultdict(Found)
        for where, place, row in self._rows.scan():
            known, options = self._format(place[0], row, where)
            for sub, item in enumerate(_adapted(known, row, where, options)):
                if isinstance(item, Removed):
                    self.removed[item.reason] += 1
                else:
                    self._add(found, known, item, (*place, sub), where)
        self.removed += self._rows.removed
        used = {name for known, _ in self._formats.values() for name in formats.options_of(known)}
        if {"text", "continuation"} & {known.name for known, _ in self._formats.values()}:
            used.add("strip_gutenberg")
        for name in sorted(set(self._args) - used):
            names = sorted({known.name for known, _ in self._formats.values()})
            raise UserError(
                f"{self._key}.args must be options of the format {', '.join(names)} ({sorted(used)}), got {name!r}"
            )
        return found

    def _add(
        self,
        found: dict[str, Found],
        known: Format,
        item: tuple[str, Record],
        address: tuple[int, int, int, int],
        where: str,
    ) -> None:
        kind, record = item
        if not known.native:
            validate(kind, record, where=where, allow_all_tied=True)
        if kind == "comparison" and "ranks" in record and len(set(record["ranks"])) < 2:
            self.removed["all_tied"] += 1
            return
        key = key_hash(split_key(record))
        prompt = prompt_of(record) if kind != "text" else []
        # the prompt of a first turn is its opening, and is not folded again
        asked = (key if len(prompt) == 1 else key_hash(prompt_key(prompt))) if prompt else 0
        content = asked if kind == "prompt" and not known.native else _content(record)
        # a prompt that a row gives by the way is a kind of its own until all rows were seen
        name = "derived" if kind == "prompt" and not known.native else kind
        if kind == "demonstration" and self._turns > 1 and _is_single(record):
            name = _SINGLE
        found[name].add(address, key, content)
        if kind == "prompt" and known.native:
            found["asked"].contents.append(asked)
        elif kind in ("demonstration", "comparison") and _asks(prompt):
            found["derived"].add(address, key, asked)

    def _settle(self, found: dict[str, Found], rules: Rules) -> None:
        asked = np.asarray(found.pop("asked", Found()).contents)
        derived = found.pop("derived", None)
        self._held_out: list[tuple[str, HeldOut]] = []
        of_singles = replace(rules, limit=rules.limit and rules.limit * self._turns)
        for kind in sorted(found):
            entries = found.pop(kind)  # what is settled needs its memory no more
            self._keep(kind, entries, of_singles if kind == _SINGLE else rules)
            del entries
        if derived is not None:
            self._add_derived(derived, asked, rules)

    def _add_derived(self, derived: Found, asked: np.ndarray, rules: Rules) -> None:
        """Prompts of other records, but those that rows of prompts say too."""
        own = {split: self._places.pop(("prompt", split), None) for split in SPLITS}
        self._keep("prompt", derived, rules, but=asked)
        for split, places in own.items():
            if places is not None:
                both = places + self._places["prompt", split]
                self._places["prompt", split] = both.first(rules.limit)

    def _keep(
        self,
        kind: str,
        entries: Found,
        rules: Rules,
        *,
        but: np.ndarray | None = None,
    ) -> None:
        places, removed, holding = settle(kind, entries, rules, but=but)
        self.removed += removed
        if kind != "text":
            self._held_out.append(("demonstration" if kind == _SINGLE else kind, holding))
        self._places |= {(kind, split): found for split, found in places.items()}

    def _at(self, kind: str, address: tuple[int, int, int, int]) -> Record:
        file, start, length, sub = address
        known, options = self._formats[file]
        row = self._rows.read(file, start, length)
        for number, item in enumerate(known.adapt(row, "", **options)):
            if number == sub:
                assert not isinstance(item, Removed)
                return item[1] if item[0] == kind else _prompt_record(item[1])
        raise UserError("a data file must not change while it is read, got another row")


def _adapted(known: Format, row: Any, where: str, options: dict[str, Any]) -> Adapted:
    """`known.adapt`, whose adapters look at what a row holds as if it were of the right types."""
    try:
        yield from known.adapt(row, where, **options)
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise UserError(
            f"{where}: must be a row of the format {known.name}, got a value of another type ({error})"
        ) from None


def _is_single(record: Record) -> bool:
    return [message["role"] for message in record["messages"]] == ["user", "assistant"]


def _prompt_record(record: Record) -> Record:
    meta = {"meta": record["meta"]} if "meta" in record else {}
    return {"prompt": prompt_of(record), **meta}


def _content(record: Record) -> int:
    digest = hashlib.blake2b(repr(record).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _asks(prompt: list[Any]) -> bool:
    """Whether it ends before the assistant speaks."""
    return prompt[-1]["role"] != "assistant"
