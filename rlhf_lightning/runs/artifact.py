"""What one stage hands to the next: a Hugging Face folder with a manifest that proves what it is.

`manifest.json` holds {format_version, stage, parents: {role: sha256}, sha256, files: {name:
sha256}, git_commit, config, metrics, created}. The sha256 is that of the files a loader reads:
equal weights have an equal one, whenever and wherever they were trained.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.foreign import object_of
from rlhf_lightning.runs.files import (
    git_commit,
    is_temporary,
    json_number,
    read_json,
    temporary_name,
    write_json,
    write_text,
)
from rlhf_lightning.runs.identity import FORMAT_VERSION, plain, sha256_of_files, tree_files
from rlhf_lightning.runs.model_card import model_card
from rlhf_lightning.runs.search import is_run, read_run


@dataclass(frozen=True)
class Artifact:
    """A verified folder that a stage can start from."""

    path: Path
    stage: str | None
    """None: a Hugging Face folder of other making."""
    sha256: str
    manifest: dict[str, Any] | None


@contextmanager
def new_artifact(
    path: str | Path,
    *,
    stage: str,
    parents: Mapping[str, str],
    config: Any,
    metrics: Mapping[str, float],
    how_to_load: str = "AutoModelForCausalLM",
    extra: Mapping[str, Any] | None = None,
) -> Iterator[Path]:
    """Yields an empty folder to save model and tokenizer into; at the end it becomes the artifact
    at `path`.

    Manifest and model card are written, then the folder is renamed into place, where an older
    artifact gives way to it. If the block raises, nothing changes. `parents` maps a role to an
    artifact's sha256; `extra` adds keys to the manifest. `config`, `metrics` and `extra` are read
    at the end: the block may still fill them.
    """
    path = Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_artifact(path)
    folder = temporary_name(path)
    folder.mkdir()
    try:
        yield folder
        files = tree_files(folder)
        manifest = {
            "format_version": FORMAT_VERSION,
            "stage": stage,
            "parents": dict(parents),
            "sha256": sha256_of_files(files),
            "files": files,
            "git_commit": git_commit(),
            "config": plain(config),
            "metrics": {name: json_number(value) for name, value in metrics.items()},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **(extra or {}),
        }
        write_text(folder / "README.md", model_card(manifest, how_to_load=how_to_load))
        write_json(folder / "manifest.json", manifest)
        _put_in_place(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _put_in_place(folder: Path, path: Path) -> None:
    # a folder cannot be renamed over a full one: between the two renames a kill leaves `.old` alone
    if path.exists():
        os.rename(path, _old(path))
    os.rename(folder, path)
    shutil.rmtree(_old(path), ignore_errors=True)


def recover_artifact(path: Path) -> None:
    """Undo what a kill left of writing `path`: the old artifact comes back. For its owner."""
    old = _old(path)
    if old.exists():
        if path.exists():
            shutil.rmtree(old)
        else:
            os.rename(old, path)
    for folder in path.parent.glob(f".{path.name}.*.tmp"):
        if is_temporary(folder):
            shutil.rmtree(folder, ignore_errors=True)


def resolve_artifact(path: str | Path, *, stages: Collection[str], key: str) -> Artifact:
    """The artifact that a setting names: a finished run's, an artifact itself, or any Hugging Face
    folder.

    Every file is compared with the manifest; a folder without one has stage None and may stand for
    any of `stages`.
    Raises: UserError that begins with `key` and says what is wrong with the path.
    """
    given = str(path)
    folder = Path(os.path.abspath(Path(path).expanduser()))
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(
            f"{key} must be a run, an artifact or a model folder, got {given!r}, which {what}"
        )
    if is_run(folder):
        folder = _artifact_of_run(folder, given=given, key=key)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{key} must be a folder with a model, got {given!r}, which has no config.json"
        )
    if not (folder / "manifest.json").exists():
        return Artifact(folder, None, sha256_of_files(tree_files(folder)), None)
    manifest = _read_manifest(folder, given=given, key=key)
    stage = manifest["stage"]
    if stage not in stages:
        raise UserError(
            f"{key} must be of stage {' or '.join(sorted(stages))}, got {given!r} of {stage}"
        )
    _verify(folder, manifest, given=given, key=key)
    return Artifact(folder, stage, manifest["sha256"], manifest)


def _artifact_of_run(run: Path, *, given: str, key: str) -> Path:
    status = read_run(run).status
    if status != "finished":
        raise UserError(f"{key} must be a finished run, got {given!r}, which is {status}")
    if not (run / "artifact").is_dir():
        task = read_run(run).task
        raise UserError(
            f"{key} must be a run with a model, got {given!r}: a run of task={task} has none"
        )
    return run / "artifact"


def _read_manifest(folder: Path, *, given: str, key: str) -> dict[str, Any]:
    manifest = read_json(folder / "manifest.json")
    version, files = manifest.get("format_version"), manifest.get("files")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"{key} must have format_version <= {FORMAT_VERSION}, got {given!r} with {version}"
        )
    if (
        not isinstance(version, int)
        or not isinstance(files, dict)
        or not {"stage", "sha256"} <= manifest.keys()
    ):
        raise UserError(
            f"{key} must have a readable manifest.json, got {given!r} with a broken one"
        )
    return manifest


def _verify(folder: Path, manifest: dict[str, Any], *, given: str, key: str) -> None:
    expected, found = manifest["files"], tree_files(folder)
    wrong = next((n for n in sorted({*expected, *found}) if expected.get(n) != found.get(n)), None)
    if wrong is None and sha256_of_files(found) == manifest["sha256"]:
        return
    if wrong is None:
        what = "the sha256 in manifest.json is not that of its files"
    elif wrong not in found:
        what = f"{wrong} is missing"
    elif wrong not in expected:
        what = f"{wrong} was added"
    else:
        what = f"{wrong} was changed"
    raise UserError(f"{key} must be an artifact as it was written, got {given!r}, where {what}")


def load_config(artifact: Artifact) -> dict[str, Any]:
    """The artifact's Hugging Face `config.json`. Raises: UserError if it is none."""
    return object_of(artifact.path / "config.json")
