"""The rows of a file, whatever its format on disk, as lines of JSON."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import IO, Any
from uuid import UUID

from rlhf_lightning.data.sentences import chunks
from rlhf_lightning.errors import UserError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")
_PAPERS = ("README", "LICENSE", "LICENCE", "SOURCE", "NOTICE", "COPYING")
"""Names of files that lie beside data and are none."""
CHUNK_CHARS = 1000
"""About the longest record that a .txt file gives, where `args.chunk_chars` says nothing."""

_JSON_CELLS = ("messages", "completions", "ranks", "pairs", "meta", "instances")
_JSON_CELLS += ("conversations", "passages", "preference", "feedback", "history")
"""Columns that hold lists or objects: JSON text in a .csv cell."""
_MIXED_CELLS = {
    "prompt": (dict,),
    "completion": (dict,),
    "chosen": (dict,),
    "rejected": (dict,),
    "source": (str,),
    "target": (str,),
}
"""Columns that hold text, or JSON: a list of these, or (`prompt`) one object."""

_ARROW_TEXTS = ("string", "large_string", "string_view", "binary", "large_binary")
"""Column types that hold texts; bytes are those of writers that do not say so."""

_LONGEST_CELL = 2**31 - 1
"""Characters; Python's own limit is 131,072."""

_HEADER = re.compile(r"\*\*\* ?START OF TH(E|IS) PROJECT GUTENBERG EBOOK", re.IGNORECASE)
_FOOTER = re.compile(r"\*\*\* ?END OF TH(E|IS) PROJECT GUTENBERG EBOOK", re.IGNORECASE)
_HEADER_LINES = 500
"""Lines among which a Project Gutenberg header must end."""

Row = tuple[str, bytes]
"""Where it was found (file:line) and its JSON."""


def suffix_of(path: Path) -> str:
    """The suffix that tells the format, without .gz."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def files_of(path: Path) -> list[Path]:
    """The file, or a folder's files. A folder of other data has no .txt of data, and its papers are none either.

    Raises: UserError if there is nothing of a known suffix.
    """
    if path.is_dir():
        found = sorted(
            file
            for file in path.iterdir()
            if file.is_file()
            and suffix_of(file) in SUFFIXES
            and file.name.split(".")[0].upper() not in _PAPERS
        )
        found = [file for file in found if suffix_of(file) != ".txt"] or found
        if not found:
            raise UserError(f"{path}: must hold files of {', '.join(SUFFIXES)}, got none")
        return found
    if not path.is_file():
        raise UserError(f"{path}: must be a file or folder, got nothing there")
    if suffix_of(path) not in SUFFIXES:
        raise UserError(
            f"{path}: must be one of {', '.join(SUFFIXES)} (or that with .gz), got {path.suffix!r}"
        )
    return [path]


def rows_of(
    path: Path, args: Mapping[str, Any], count: Callable[[str, int], None]
) -> Iterator[Row]:
    """The rows of a file as lines of JSON. `args` and `count` are for .txt: see `_txt`.

    Raises: UserError if the file is not what its suffix says.
    """
    readers = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    suffix = suffix_of(path)
    try:
        with _opened(path) as file:
            if suffix == ".txt":
                yield from _txt(path, file, args, count)
            else:
                yield from readers[suffix](path, file)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise UserError(f"{path}: must be a readable {suffix} file, got {error}") from None


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _json_lines(path: Path, file: IO[bytes]) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        yield f"{path}:{number}", line


def _json(path: Path, file: IO[bytes]) -> Iterator[Row]:
    """One array of records (read at once), or JSON Lines under the wrong suffix."""
    first = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    file.seek(0)
    if first != b"[":
        yield from _json_lines(path, file)
        return
    try:
        records = json.load(file)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: must be a JSON array of records, got {error}") from None
    for number, record in enumerate(records):
        yield f"{path}[{number}]", line_of(record)


def _csv(path: Path, file: IO[bytes]) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CELL)
    # closes `file` too, or the wrapper would complain that it was left open
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
        filled: set[str] = set()
        for row in csv.DictReader(lines):
            filled |= {str(key) for key, cell in row.items() if cell}
        lines.seek(0)
        yield from _csv_rows(path, lines, filled)


def _csv_rows(path: Path, lines: IO[str], filled: Collection[str]) -> Iterator[Row]:
    """The rows without the columns that are empty in all of them: which columns there are tells the format."""
    reader = csv.DictReader(lines, strict=True)  # a quote that is not closed would swallow rows
    for row in _with_line(path, reader):
        where = f"{path}:{reader.line_num}"
        if None in row:
            cells = len(reader.fieldnames or ())
            raise UserError(
                f"{where}: must have {cells} cells like the header, got {cells + len(row[None])}"
                " (a text with a comma needs quotes)"
            )
        record = {str(key): cell or "" for key, cell in row.items() if str(key) in filled}
        yield (
            where,
            line_of({k: _cell(k, c) for k, c in record.items() if c or k not in _JSON_CELLS}),
        )


def _with_line(path: Path, reader: csv.DictReader[Any]) -> Iterator[dict[Any, Any]]:
    try:
        yield from reader
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: must be CSV, got {error}") from None


def _cell(key: str, cell: str) -> object:
    """Text, or what its JSON says. A format that needs a list will say so where there is a text."""
    if key in _JSON_CELLS:
        try:
            return json.loads(cell)
        except ValueError:
            return cell
    if key in _MIXED_CELLS and isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(cell)
        except ValueError:
            return cell  # a text that begins so
        whole = isinstance(value, dict) and key == "prompt"
        listed = (
            isinstance(value, list)
            and value
            and all(isinstance(item, _MIXED_CELLS[key]) for item in value)
        )
        return value if whole or listed else cell
    return cell


def _parquet(path: Path, file: IO[bytes]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        table = pq.ParquetFile(file)
        texts = {f.name for f in table.schema_arrow if str(f.type) in _ARROW_TEXTS}
        texts = {name for name in texts if not _is_empty(table, name)}
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield f"{path}[{number}]", line_of(present(row, texts))
                number += 1
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: must be a Parquet file, got {error}") from None


def _is_empty(table: Any, column: str) -> bool:
    """Whether a column of a Parquet file holds nothing."""
    return all(
        batch.column(0).null_count == len(batch)
        for batch in table.iter_batches(batch_size=65_536, columns=[column])
    )


def _txt(
    path: Path, file: IO[bytes], args: Mapping[str, Any], count: Callable[[str, int], None]
) -> Iterator[Row]:
    """Pieces of about `args.chunk_chars` characters.

    What Project Gutenberg prints before and after a book is left out and counted, unless `args.strip_gutenberg` is
    false.
    """
    with io.TextIOWrapper(file, encoding="utf-8-sig") as lines:
        text: Iterable[str] = lines
        if args.get("strip_gutenberg", True):
            text = _without_licence(lines, count)
        for number, piece in enumerate(chunks(text, args.get("chunk_chars") or CHUNK_CHARS)):
            yield f"{path}[{number}]", line_of({"text": piece})


def _without_licence(lines: Iterable[str], count: Callable[[str, int], None]) -> Iterator[str]:
    held: list[str] | None = []
    ended = False
    for line in lines:
        if held is not None:
            held.append(line)
            if _HEADER.search(line):
                count("gutenberg_line", len(held))
                held = None
            elif len(held) == _HEADER_LINES:
                yield from held
                held = None
        else:
            ended = ended or _FOOTER.search(line) is not None
            if ended:
                count("gutenberg_line", 1)
            else:
                yield line
    yield from held or ()


def present(row: dict[str, Any], texts: Collection[str]) -> dict[str, Any]:
    """A row of a table without the cells that are null; in the columns `texts` they are empty texts.

    So which columns a row has, and with it its format, is the same in every row of a table of texts. Columns that are
    empty in all rows are no part of `texts`.
    """
    return {
        key: "" if value is None else value
        for key, value in row.items()
        if value is not None or key in texts
    }


def line_of(record: object) -> bytes:
    """One line of JSON. Bytes are read as UTF-8: some writers of Parquet do not say that a column is text.

    Raises: ValueError (UnicodeDecodeError) for what has no text: other bytes, an image.
    """
    return json.dumps(record, default=_plain).encode() + b"\n"


def _plain(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, date | time | timedelta | Decimal | UUID):
        return str(value)
    raise ValueError(f"a value of type {type(value).__name__}, which is no text")


def parse(line: bytes, where: str) -> Any:
    """Raises: UserError if it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError, too deep
        raise UserError(
            f"{where}: must be one JSON object, got {line[:40].strip()!r} ({error})"
        ) from None
