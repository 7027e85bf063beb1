"""Files and links that are whole at any moment: written under a temporary name, then renamed.

And the git commit.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError


def temporary_name(path: Path) -> Path:
    """A hidden name of its own beside `path`: `.<name>.<random>.tmp`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether `temporary_name` made this name."""
    return re.fullmatch(r"\..+\.[0-9a-f]{12}\.tmp", path.name) is not None


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`; a kill leaves the old content or the new one, never a part."""
    temporary = temporary_name(path)
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def json_number(value: Any) -> float | int | None:
    """A JSON number of a Python, numpy or torch scalar; null for what is not finite."""
    number = value.item() if hasattr(value, "item") else value
    return number if number is not None and math.isfinite(number) else None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if the file is absent or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def sync(path: Path) -> None:
    """Wait until a file's or folder's content is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link(target: str | Path, name: str | Path) -> None:
    """Make `name` a relative symbolic link to `target`, replacing a link that is there.

    Nothing happens where `name` is `target` itself (a stage that lies inside its pipeline).
    Raises: UserError if `name` is taken by something that is not a link.
    """
    target, name = Path(os.path.realpath(target)), Path(os.path.abspath(name))
    if name.exists() and not name.is_symlink():
        if name.resolve() == target:
            return
        raise UserError(
            f"run_dir must leave room for a link, got {str(name)!r}, which is in its way"
        )
    name.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(name)
    # relative to the real folder: a relative link in a folder that is reached through a link would
    # miss
    temporary.symlink_to(os.path.relpath(target, name.parent.resolve()))
    try:
        os.replace(temporary, name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def mark_latest(outputs: str | Path, run: str | Path) -> None:
    """Point `outputs/latest` at the last run."""
    link(run, Path(outputs) / "latest")


@contextmanager
def own_directory(path: Path) -> Iterator[list[Path]]:
    """Make `path` with its parents; yields those that are new.

    If the block raises, they are removed while empty.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield missing
    except BaseException:
        remove_empty(missing)
        raise


def remove_empty(folders: list[Path]) -> None:
    """Remove folders, innermost first, until one is not empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return


@functools.cache
def git_commit() -> str | None:
    """Commit of this package's checkout, `-dirty` if it has changes; None outside of one."""
    package = Path(__file__).resolve().parents[1]
    # a hook or a CI job may have pointed git at some other repository
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"  # only looked at: no lock, so a kill leaves none behind

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "errors.py")  # not a wheel inside somebody's repository
        # not describe --dirty, which takes the lock in any case
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
