"""Which run a config is: canonical JSON, its hash, and what differs between two of them."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

FORMAT_VERSION = 2
"""Of run directories, manifests and identities; a newer one than the code knows is refused."""

ABSENT = "<absent>"
"""Stands in a `Difference` for the value of a key that one side does not have."""

NOT_HASHED = ("manifest.json", "README.md")
"""Top-level files of an artifact outside its sha256: the manifest holds it, the model card is prose
with dates."""


def plain(value: Any) -> Any:
    """`value` in JSON's own types: dataclasses, enums, paths, tuples and sets are resolved, keys
    are strings.

    Raises: TypeError for anything that has no stable text.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=canonical_json)
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} has no canonical JSON")


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no spaces, floats as the shortest that reads back."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def run_hash(identity: Mapping[str, Any]) -> str:
    """First 12 hex digits of the sha256 of the identity's canonical JSON."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:12]


def run_name(model: str, mix: str, seed: int) -> str:
    """`nano-demo-s0`; whatever a file name should not hold becomes `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{model}-{mix}").strip("-.") + f"-s{seed}"


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file, read as a stream."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_files(folder: str | Path) -> dict[str, str]:
    """Relative name → sha256 of every file that counts: not hidden, not in `NOT_HASHED`.

    Linked files are read.
    """
    root = Path(folder)
    names = []
    for path in root.rglob("*"):
        name = path.relative_to(root)
        if not any(part.startswith(".") for part in name.parts) and path.is_file():
            names.append(name.as_posix())
    return {name: sha256_file(root / name) for name in sorted(names) if name not in NOT_HASHED}


def sha256_of_files(files: Mapping[str, str]) -> str:
    """Sha256 of a whole tree from the sha256 of its files: over sorted lines `sha256  name`."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def sha256_tree(folder: str | Path) -> str:
    """Sha256 over names and contents of `tree_files`; place and dates play no part."""
    return sha256_of_files(tree_files(folder))


class Difference(NamedTuple):
    """One dotted key with its value on both sides."""

    key: str
    a: Any
    b: Any

    def __str__(self) -> str:
        a, b = (value if value == ABSENT else _short(value) for value in (self.a, self.b))
        return f"{self.key}: {a} → {b}"


def _short(value: Any) -> str:
    """JSON, of a sha256 the first digits."""
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1…", canonical_json(value))


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """Dotted keys whose values differ, in order; lists count as one value."""
    left, right = dict(_leaves(plain(a))), dict(_leaves(plain(b)))
    pairs = ((key, left.get(key, ABSENT), right.get(key, ABSENT)) for key in {**left, **right})
    return sorted(
        (Difference(*pair) for pair in pairs if canonical_json(pair[1]) != canonical_json(pair[2])),
        key=lambda difference: difference.key,
    )


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and (value or not prefix):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value
