"""Records from local files: .jsonl, .json, .csv, .parquet, .txt, each also .gz, or a folder of them.

A file is read once, row by row; every row is checked, and only the places of its records are remembered. Rows are
read again from disk when they are asked for. What is not plain JSON Lines is turned into JSON Lines in an unnamed
temporary file first, so that all formats share one way of random access.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from rlhf_lightning.data.adapted import AdaptedSource
from rlhf_lightning.data.index import Rules
from rlhf_lightning.data.rows import files_of, parse, rows_of
from rlhf_lightning.errors import UserError


class FileSource(AdaptedSource):
    """A `Source` of the records in a file or folder, split by a hash of the prompt, or all of one split.

    The format is that of a file's first row, and holds for the whole file.
    Raises: UserError for a missing or empty file, an unknown format, a row that breaks the rules of its format.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        limit: int | None = None,
        validation_fraction: float = 0.05,
        test_fraction: float = 0.05,
        rules: Rules | None = None,
        format_name: str | None = None,
        args: Mapping[str, Any] | None = None,
        dialogue_turns: int = 1,
        key: str = "source",
    ) -> None:
        self.paths = files_of(Path(path))
        super().__init__(
            _FileRows(self.paths, args or {}),
            rules=rules or Rules(validation_fraction, test_fraction, limit=limit),
            format_name=format_name,
            args=args,
            dialogue_turns=dialogue_turns,
            key=key,
        )

    def identity(self) -> dict[str, str]:
        """File name → sha256 of its bytes."""
        return {path.name: sha256_of(path) for path in self.paths}


OPEN_FILES = 128
"""A process may have some 1000; of a larger folder the others are opened for each row."""


class _FileRows:
    """`Rows` of files, the first of which stay open as long as this lives."""

    def __init__(self, paths: list[Path], args: Mapping[str, Any]) -> None:
        self.removed: Counter[str] = Counter()
        self._paths, self._args = paths, args
        self._stores: list[IO[bytes] | Path] = []
        self._open = ExitStack()
        weakref.finalize(self, _close, self._open)

    def scan(self) -> Iterator[tuple[str, tuple[int, int, int], Any]]:
        for number, path in enumerate(self._paths):
            empty = True
            try:
                for where, start, line in self._stored(path):
                    if line.strip():
                        empty = False
                        yield where, (number, start, len(line)), parse(line, where)
            except OSError as error:  # of reading, rows_of tells
                raise UserError(
                    f"{path}: must be readable, and fit as JSON Lines into {tempfile.gettempdir()} (TMPDIR names"
                    f" another folder), got {error}"
                ) from None
            if empty:
                raise UserError(f"{path}: must hold at least one record, got an empty file")

    def _stored(self, path: Path) -> Iterator[tuple[str, int, bytes]]:
        """Every line, and where it begins in what it can be read from again: the file, or else a copy."""
        if path.suffix == ".jsonl":
            few = len(self._stores) < OPEN_FILES
            self._stores.append(self._open.enter_context(path.open("rb")) if few else path)
            start = 0
            for where, line in rows_of(path, self._args, self._count):
                yield where, start, line
                start += len(line)
            return
        copies = self._copies
        self._stores.append(copies)
        start = copies.seek(0, os.SEEK_END)
        for where, line in rows_of(path, self._args, self._count):
            yield where, start, line
            copies.write(line)
            start += len(line)
        copies.flush()

    def read(self, file: int, start: int, length: int) -> Any:
        store = self._stores[file]
        if isinstance(store, Path):
            with store.open("rb") as opened:
                line = os.pread(opened.fileno(), length, start)
        else:  # pread has no shared cursor: threads may read at the same time
            line = os.pread(store.fileno(), length, start)
        return parse(line, str(self._paths[file]))

    @cached_property
    def _copies(self) -> IO[bytes]:
        """Of all files that are no plain JSON Lines; one, because open files are few."""
        return self._open.enter_context(tempfile.TemporaryFile())

    def _count(self, reason: str, count: int) -> None:
        self.removed[reason] += count


def _close(files: ExitStack) -> None:
    with suppress(OSError):  # a copy that could not be written, which was told
        files.close()


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
