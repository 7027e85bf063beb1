"""What a model of other making counts as in a run's identity, and whether it is where it is said to be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlhf_lightning.config import ModelConfig, RewardPartConfig
from rlhf_lightning.config.reward_source import OF_KIND
from rlhf_lightning.data.tokenizer import has_chat_template
from rlhf_lightning.errors import UserError
from rlhf_lightning.offline_model import NAME as OFFLINE
from rlhf_lightning.offline_model import cached
from rlhf_lightning.runs.identity import plain, sha256_file, sha256_tree

_AS_BEFORE = (("reads", "chat"), ("chat_template", None))


def require_local_folder(path: str, key: str) -> None:
    """Raises: UserError if `path` is written as a place on this machine and has no model."""
    local = path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).is_dir()
    if local and not (Path(path) / "config.json").is_file():
        if Path(path) == cached(OFFLINE):
            raise UserError(
                f"{key} must be there first: make offline-model (or python -m rlhf_lightning.offline_model),"
                f" got nothing in {path!r}"
            )
        own = Path(path) / "artifact"
        hint = f"; did you mean {str(own)!r}?" if (own / "config.json").is_file() else ""
        raise UserError(
            f"{key} must be a hub id or a folder with a model, got {path!r}, which has no config.json{hint}"
        )


def model_identity(model: ModelConfig) -> dict[str, Any]:
    """The settings; a local folder counts by its files' sha256, not by its place."""
    identity = plain(model)
    if model.path is not None and Path(model.path).is_dir():
        identity |= {"path": Path(model.path).name, "sha256": _tree(model.path)}
    return identity


def parts_identity(parts: Mapping[str, RewardPartConfig], key: str) -> dict[str, Any]:
    """What parts of a score compute. Local files and folders count by their sha256, not by their place.

    Raises: UserError if a model of other making is written as a place on this machine and is not there.
    """
    return {name: _part_identity(part, f"{key}.{name}") for name, part in sorted(parts.items())}


def _part_identity(part: RewardPartConfig, key: str) -> dict[str, Any]:
    own = {"kind", "weight", *OF_KIND[part.kind]} - {"batch_size", "trust_remote_code"}
    identity = {k: v for k, v in plain(part).items() if k in own}
    if part.kind == "model":  # at their defaults a part is what it was before they came
        identity = {k: v for k, v in identity.items() if (k, v) not in _AS_BEFORE}
    if part.kind == "function":
        identity["args"] = _with_files(identity["args"])
    if part.chat_template is not None:
        if not Path(part.chat_template).is_file():
            raise UserError(f"{key}.chat_template must be a file, got {part.chat_template!r}")
        identity["chat_template"] = sha256_file(Path(part.chat_template))
    if part.path is not None:
        require_local_folder(part.path, f"{key}.path")
        if Path(part.path).is_dir():
            require_one_label(part.path, f"{key}.path")
            own = part.reads == "chat" and part.chat_template is None
            if own and not has_chat_template(Path(part.path)):
                raise UserError(part.without_template(key))
            identity |= {"path": Path(part.path).name, "sha256": _tree(part.path)}
    return identity


def _with_files(value: Any) -> Any:
    """Arguments; where a text names a file or a folder, the sha256 beside its name."""
    if isinstance(value, dict):
        return {key: _with_files(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_files(item) for item in value]
    if not isinstance(value, str) or not value:
        return value
    try:
        path = Path(value).expanduser()
        if path.is_file():
            return {"file": path.name, "sha256": sha256_file(path)}
        # a word that happens to be a folder's name here is a word, as are / and ..
        if "/" in value and path.name not in ("", "..") and path.is_dir():
            return {"folder": path.name, "sha256": _tree(str(path))}
    except (OSError, RuntimeError):  # a text too long for a name, or ~nobody
        pass
    return value


def require_one_label(path: str, key: str) -> None:
    """Raises: UserError if the model in a folder gives other than one number for a text."""
    config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    # transformers writes the labels where there are not two of them
    labels = len(config.get("id2label") or {}) or config.get("num_labels", 2)
    if labels != 1:
        raise UserError(f"{key} must be a model with one label, got {path!r} with {labels}")


@lru_cache(maxsize=8)
def _tree(path: str) -> str:
    return sha256_tree(path)
