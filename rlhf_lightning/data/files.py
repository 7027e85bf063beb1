"""Records from local files: .jsonl, .json, .csv, .parquet, each also .gz, or a folder of them.

A file is read once, row by row; every row is checked, and only its place is remembered (16 bytes a row).
Rows are read again from disk when they are asked for. What is not plain JSON Lines is turned into JSON Lines
in an unnamed temporary file first, so that all formats share one way of random access.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import tempfile
import weakref
from array import array
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from rlhf_lightning.data.records import Record, detect_kind, split_key, split_of, validate
from rlhf_lightning.errors import UserError

FORMATS = (".jsonl", ".json", ".csv", ".parquet")
_JSON_CELLS = ("messages", "prompt", "completions", "ranks", "pairs", "meta")
"""Columns that hold lists or objects: JSON text in a .csv cell."""

Row = tuple[str, bytes]
"""Where it was found (file:line) and its JSON."""


class FileSource:
    """A `Source` of the native records in a file or folder, split by a hash of the prompt.

    The kind is that of a file's first record, and holds for the whole file.
    Raises: UserError for a missing or empty file, an unknown format, a row that breaks the rules of its kind.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        limit: int | None = None,
        validation_fraction: float = 0.05,
        test_fraction: float = 0.05,
    ) -> None:
        self.paths = _files(Path(path))
        self._fractions = {
            "validation_fraction": validation_fraction,
            "test_fraction": test_fraction,
        }
        self._limit = limit
        self._places: dict[tuple[str, str], _Places] = defaultdict(_Places)
        files = ExitStack()
        weakref.finalize(self, files.close)
        with ExitStack() as on_error:
            on_error.enter_context(files)
            self._stores = [
                self._scan(number, file, files) for number, file in enumerate(self.paths)
            ]
            on_error.pop_all()  # all is well: the files stay open as long as the source lives

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset(kind for kind, _ in self._places)

    def size(self, kind: str, split: str) -> int:
        return len(self._places[kind, split]) if (kind, split) in self._places else 0

    def record(self, kind: str, split: str, index: int) -> Record:
        file, start, length = self._places[kind, split][index]
        # pread has no shared cursor: threads may read at the same time.
        record = json.loads(os.pread(self._stores[file].fileno(), length, start))
        record.pop("source", None)  # the mixture names it
        return record

    def identity(self) -> dict[str, str]:
        """File name → sha256 of its bytes."""
        return {path.name: sha256_of(path) for path in self.paths}

    def _scan(self, number: int, path: Path, files: ExitStack) -> IO[bytes]:
        plain = path.suffix == ".jsonl"
        store = files.enter_context(path.open("rb") if plain else tempfile.TemporaryFile())  # noqa: SIM115
        kind, start = None, 0
        for where, line in _rows(path):
            if line.strip():
                record = _parse(line, where)
                kind = kind or detect_kind(record, where=where)
                validate(kind, record, where=where)
                self._remember(kind, record, number, start, len(line))
            if not plain:
                store.write(line)
            start += len(line)
        store.flush()
        if kind is None:
            raise UserError(f"{path}: must hold at least one record, got an empty file")
        return store

    def _remember(self, kind: str, record: Record, file: int, start: int, length: int) -> None:
        places = self._places[kind, split_of(split_key(record), **self._fractions)]
        if self._limit is None or len(places) < self._limit:
            places.append(file, start, length)


class _Places:
    """Where rows lie, in flat arrays."""

    def __init__(self) -> None:
        self.files, self.starts, self.lengths = array("H"), array("Q"), array("L")

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[int, int, int]:
        return self.files[index], self.starts[index], self.lengths[index]

    def append(self, file: int, start: int, length: int) -> None:
        self.files.append(file)
        self.starts.append(start)
        self.lengths.append(length)


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _format(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(
            file for file in path.iterdir() if file.is_file() and _format(file) in FORMATS
        )
        if not found:
            raise UserError(f"{path}: must hold files of {', '.join(FORMATS)}, got none")
        return found
    if not path.is_file():
        raise UserError(f"{path}: must be a file or folder, got nothing there")
    if _format(path) not in FORMATS:
        raise UserError(
            f"{path}: must be one of {', '.join(FORMATS)} (or that with .gz), got {path.suffix!r}"
        )
    return [path]


def _parse(line: bytes, where: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:  # JSONDecodeError or UnicodeDecodeError
        raise UserError(
            f"{where}: must be one JSON object, got {line[:40].strip()!r} ({error})"
        ) from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: must be a JSON object, got {record!r:.60}")
    return record


def _rows(path: Path) -> Iterator[Row]:
    """The rows of a file as lines of JSON.

    Raises: UserError if the file is not what its suffix says.
    """
    read = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}[
        _format(path)
    ]
    try:
        with _opened(path) as file:
            yield from read(path, file)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: must be a readable {_format(path)} file, got {error}") from None


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _json_lines(path: Path, file: IO[bytes]) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        yield f"{path}:{number}", line


def _json(path: Path, file: IO[bytes]) -> Iterator[Row]:
    """One array of records (read at once), or JSON Lines under the wrong suffix."""
    first = file.read(64).lstrip()[:1]
    file.seek(0)
    if first != b"[":
        yield from _json_lines(path, file)
        return
    try:
        records = json.load(file)
    except ValueError as error:
        raise UserError(f"{path}: must be a JSON array of records, got {error}") from None
    for number, record in enumerate(records):
        yield f"{path}[{number}]", _line(record)


def _csv(path: Path, file: IO[bytes]) -> Iterator[Row]:
    # closes `file` too, or the wrapper would complain that it was left open
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
        yield from _csv_rows(path, lines)


def _csv_rows(path: Path, lines: IO[str]) -> Iterator[Row]:
    reader = csv.DictReader(lines)
    for row in reader:
        where = f"{path}:{reader.line_num}"
        record: dict[str, Any] = {key: cell for key, cell in row.items() if cell not in (None, "")}
        for key in set(_JSON_CELLS) & set(record):
            try:
                record[key] = json.loads(record[key])
            except (ValueError, TypeError):
                raise UserError(f"{where}: {key} must be JSON, got {record[key]!r:.60}") from None
        yield where, _line({str(key): cell for key, cell in record.items()})


def _parquet(path: Path, file: IO[bytes]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield f"{path}[{number}]", _line({k: v for k, v in row.items() if v is not None})
                number += 1
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: must be a Parquet file, got {error}") from None


def _line(record: object) -> bytes:
    return json.dumps(record, default=str).encode() + b"\n"
