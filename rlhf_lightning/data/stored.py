"""Records that a run made and keeps: JSON Lines, written whole or not at all, read one by one."""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from rlhf_lightning.data.records import Record


class LazyRecords(Sequence[Record]):
    """Records that are read or made when they are asked for; `_record` says how."""

    @abstractmethod
    def _record(self, index: int) -> Record:
        """The record at 0 ≤ index < len."""

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self._record(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._record(index % len(self))


class StoredRecords(LazyRecords):
    """A JSON Lines file as a sequence; in memory is one offset a record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = array("Q", [0])
        with path.open("rb") as file:
            for line in file:
                self._starts.append(self._starts[-1] + len(line))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def _record(self, index: int) -> Record:
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            return json.loads(file.readline())

    def __iter__(self) -> Iterator[Record]:
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


class Reordered(LazyRecords):
    """A sequence of records in another order; none of them is read before it is asked for."""

    def __init__(self, records: Sequence[Record], order: Sequence[int]) -> None:
        self.records, self.order = records, order

    def __len__(self) -> int:
        return len(self.order)

    def _record(self, index: int) -> Record:
        return self.records[self.order[index]]


def store(path: Path, records: Iterable[dict[str, Any]]) -> StoredRecords:
    """Write all records under a temporary name, then rename; a kill leaves no part of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    write_rows(part, records)
    os.replace(part, path)
    return StoredRecords(path)


def write_rows(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write records as JSON Lines, down to the disk; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, record in enumerate(records, start=1):  # noqa: B007 (returned)
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return count
