"""Records from the Hugging Face hub, or from a local folder that `datasets` can load: memory-mapped Arrow."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rlhf_lightning.data.adapted import AdaptedSource
from rlhf_lightning.data.index import Rules
from rlhf_lightning.data.rows import line_of, present
from rlhf_lightning.errors import UserError


@dataclass(frozen=True)
class HubDataset:
    """What is to be loaded."""

    name: str
    """`organisation/name` on the hub, or a folder."""
    config: str | None
    split: str
    revision: str | None


class HubSource(AdaptedSource):
    """A `Source` of the rows of one split of a dataset, split again like a file's.

    Raises: UserError if it cannot be loaded or is empty; else like `FileSource`.
    """

    def __init__(
        self,
        dataset: HubDataset,
        *,
        rules: Rules,
        format_name: str | None = None,
        args: Mapping[str, Any] | None = None,
        dialogue_turns: int = 1,
        key: str = "source",
    ) -> None:
        rows = _ArrowRows(dataset, key)
        self._dataset, self._arrow = dataset, rows
        super().__init__(
            rows,
            rules=rules,
            format_name=format_name,
            args=args,
            dialogue_turns=dialogue_turns,
            key=key,
        )

    def identity(self) -> dict[str, Any]:
        """What was asked for, and the sha256 of the rows that came."""
        # a folder's place says nothing, its rows do
        name = self._dataset.name.rstrip("/").rsplit("/", 1)[-1]
        return asdict(self._dataset) | {"name": name, "sha256": self._arrow.digest.hexdigest()}


class _ArrowRows:
    """`Rows` of a memory-mapped table."""

    def __init__(self, dataset: HubDataset, key: str) -> None:
        self.removed: Counter[str] = Counter()
        self.digest = hashlib.sha256()
        self._name = dataset.name
        self._table = _loaded(dataset, key)
        self._texts = {
            name
            for name, feature in self._table.features.items()
            if getattr(feature, "dtype", None) in ("string", "large_string")
            and self._table.data.column(name).null_count < len(self._table)
        }

    def scan(self) -> Iterator[tuple[str, tuple[int, int, int], Any]]:
        if len(self._table) == 0:
            raise UserError(f"{self._name}: must hold at least one record, got an empty dataset")
        for number, given in enumerate(self._table):
            where, row = f"{self._name}[{number}]", present(given, self._texts)
            try:
                self.digest.update(line_of(row))
            except ValueError as error:
                raise UserError(f"{where}: must be text, numbers and lists, got {error}") from None
            yield where, (0, number, 0), row

    def read(self, file: int, start: int, length: int) -> Any:
        return present(self._table[start], self._texts)


def _loaded(dataset: HubDataset, key: str) -> Any:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return datasets.load_dataset(
            dataset.name, name=dataset.config, split=dataset.split, revision=dataset.revision
        )
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{key}.hub must be a dataset that can be loaded, got {dataset.name!r} ({reason})"
        ) from None
