"""From Hydra's tree to checked dataclasses, and back to a file that can be run again.

Together with `__main__` and `pipeline` the only place where Hydra and OmegaConf are seen.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.binding import check_targets, suggestion
from rlhf_lightning.config import (
    EvaluateConfig,
    MixConfig,
    ModelConfig,
    RewardConfig,
    RewardPartConfig,
    RewardSourceConfig,
    RootConfig,
    SourceConfig,
    cross_check,
)
from rlhf_lightning.errors import UserError
from rlhf_lightning.offline_model import cached

PACKAGE = Path(__file__).resolve().parent

OPEN_NODES = {
    "mix.sources": SourceConfig,
    "reward_source.parts": RewardPartConfig,
    "evaluate.known": RewardPartConfig,
    "reward.rank_by": RewardPartConfig,
}
"""Key → what each of its entries is; the names are the user's."""


def conf_dir() -> Path:
    """The config groups: inside the installed package, or beside it in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def register() -> None:
    """Make the typed schema known to Hydra, so that a key that it does not have is refused wherever it is written."""
    # a folder in the cache, for models that are converted there
    OmegaConf.register_new_resolver("cached", lambda name: str(cached(name)), replace=True)
    schema = OmegaConf.structured(RootConfig)
    schema.model = OmegaConf.structured(ModelConfig)
    schema.mix = OmegaConf.structured(MixConfig)
    schema.evaluate = OmegaConf.structured(EvaluateConfig)
    schema.reward = OmegaConf.structured(RewardConfig)
    schema.reward_source = OmegaConf.structured(RewardSourceConfig)
    # open, so that new names need no `+` on the command line
    for node in (
        schema.model.architecture,
        schema.mix.sources,
        schema.mix.weights,
        schema.evaluate.models,
        schema.evaluate.known,
        schema.reward.rank_by,
        schema.reward_source.parts,
        schema.pipeline.slurm.stages,
    ):
        OmegaConf.set_struct(node, False)
    # `mix.sources.mine.path=...` first makes an untyped `mine`; to_root types it
    for node in (
        schema.mix.sources,
        schema.reward.rank_by,
        schema.reward_source.parts,
        schema.evaluate.known,
    ):
        node._metadata.element_type = Any
    store = ConfigStore.instance()
    # Hydra copies its repository, this one store with it, for every group that it looks at: `--help` took twice as long
    vars(store)["__deepcopy__"] = lambda _memo: store
    store.store("schema", schema, provider="rlhf")


def config_flags() -> list[str]:
    """`--config-dir` and `--config-name` as the running command line has them, for a command that is like it."""
    if not HydraConfig.initialized():
        return []
    hydra = HydraConfig.get()
    main, added = (
        next((s.path for s in hydra.runtime.config_sources if s.provider == provider), None)
        for provider in ("main", "command-line")
    )
    name = str(hydra.job.config_name)
    if main != str(conf_dir()):
        return ["--config-dir", str(main), "--config-name", name]
    flags = ["--config-dir", str(added)] if added else []
    return flags if name == "config" else [*flags, "--config-name", name]


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The config of a command line, in process, also while Hydra runs a job. Raises: what Hydra raises."""
    register()
    outer = Singleton.get_state()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
            return hydra_compose("config", overrides=list(overrides))
    finally:
        Singleton.set_state(outer)


def to_root(cfg: DictConfig) -> RootConfig:
    """The tree as dataclasses; their `__post_init__` checks the ranges.

    Raises: UserError for an unknown or missing key and for a value out of range, OmegaConf's errors for a wrong
    type or a bad interpolation.
    """
    if OmegaConf.get_type(cfg) is not RootConfig:
        raise UserError("defaults must hold `entry` or `schema`, got a config without either")
    _refuse_environment(cfg)
    cfg = _with_typed_sources(cfg)
    _refuse_unknown(cfg)
    for key in sorted(OmegaConf.missing_keys(cfg)):
        raise UserError(f"{key} must be given, got nothing")
    try:
        root = OmegaConf.to_object(cfg)
    except UserError as error:
        raise UserError(_full_key(cfg, str(error))) from None
    assert isinstance(root, RootConfig)
    return root


def _refuse_environment(cfg: DictConfig) -> None:
    """What a config holds is written into artifacts, model cards and reports: no place for a key of the user's."""
    for group in OPEN_NODES:
        node = OmegaConf.select(cfg, group)
        given = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else {}
        for key, value in flatten(cast("Mapping[str, Any]", given), f"{group}.").items():
            if ".args." in key and "${oc.env:" in str(value).replace(" ", ""):
                raise UserError(
                    f"{key} must not come from the environment (configs are written into artifacts and reports; the"
                    f" function itself may read os.environ), got {value!r}"
                )


def _with_typed_sources(cfg: DictConfig) -> DictConfig:
    typed = copy.deepcopy(cfg)
    for key, kind in OPEN_NODES.items():
        node = OmegaConf.select(typed, key)
        for name in node or {}:
            if not isinstance(node._get_node(name), DictConfig) or node._get_node(name)._is_none():
                raise UserError(f"{key}.{name} must be a group of settings, got {node[name]!r}")
            schema, given = OmegaConf.create(), OmegaConf.create()
            # at its whole key, so that a message names that
            OmegaConf.update(schema, f"{key}.{name}", OmegaConf.structured(kind), force_add=True)
            typed_node = OmegaConf.select(schema, f"{key}.{name}")
            for inner in {"args", "kinds"} & set(typed_node):
                OmegaConf.set_struct(typed_node[inner], False)
            OmegaConf.update(given, f"{key}.{name}", node._get_node(name), force_add=True)
            node[name] = OmegaConf.select(OmegaConf.merge(schema, given), f"{key}.{name}")
    return typed


def _refuse_unknown(node: DictConfig, path: str = "") -> None:
    """`+key=value` adds a key even to a typed node."""
    kind = OmegaConf.get_type(node)
    known = {f.name for f in fields(kind)} if kind is not None and is_dataclass(kind) else None
    for key in node:
        where = f"{path}.{key}" if path else str(key)
        if known is not None and key not in known:
            raise UserError(
                f"{where} must be a known setting, got an unknown key{suggestion(str(key), known)}"
            )
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            _refuse_unknown(child, where)


def check(cfg: DictConfig) -> RootConfig:
    """Everything that can be known before data and weights are touched.

    Raises: UserError with the dotted key, what was got and what is allowed.
    """
    root = to_root(cfg)
    cross_check(root)
    check_targets(asdict(root))
    return root


def _full_key(cfg: DictConfig, message: str) -> str:
    """The message with the whole key where a node only knew its own name (`schedule.name` is `ppo.schedule.name`)."""
    path = _deepest_failure(cfg, "")
    name = message.split(" ", maxsplit=1)[0].split(".", maxsplit=1)[0]
    if path.endswith(f".{name}"):
        return path + message.removeprefix(name)
    if path and "." not in message.split(" ", maxsplit=1)[0]:  # an entry of an open node
        return f"{path}.{message}"
    return message


def _deepest_failure(node: DictConfig, path: str) -> str:
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            try:
                OmegaConf.to_object(child)
            except UserError:
                return _deepest_failure(child, f"{path}.{key}" if path else str(key))
    return path


@lru_cache(maxsize=1)
def default_root() -> RootConfig:
    """What `rlhf` without an argument runs."""
    return to_root(compose())


def defaults_diff(root: RootConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted key → (default, got) for every setting that differs from the default; None where one side has none."""
    default, got = flatten(asdict(default_root())), flatten(asdict(root))
    keys = [*got, *(key for key in default if key not in got)]
    return {
        key: (default.get(key), got.get(key))
        for key in keys
        if default.get(key) != got.get(key) or (key in default) != (key in got)
    }


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key → leaf; an empty dict is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


SAVED_HEADER = """\
# Repeat it: rlhf --config-dir <this folder> --config-name config run_dir=NEW
defaults:
  - entry
  - _self_

"""


def saved_config(root: RootConfig) -> str:
    """The resolved config as a YAML file that `rlhf --config-dir DIR --config-name config` runs again."""
    return SAVED_HEADER + OmegaConf.to_yaml(OmegaConf.create(_escaped(asdict(root))))


def escaped(text: str) -> str:
    """The text for OmegaConf, which looks for a key in `${...}`: a backslash keeps that, one before it is doubled."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, list | tuple) else value


def load_saved(path: Path) -> RootConfig:
    """The config of a file written by `saved_config`.

    Raises: UserError if it is not one that this version can read.
    """
    from rlhf_lightning.compose_errors import one_line

    register()
    try:
        loaded = OmegaConf.load(path)
        assert isinstance(loaded, DictConfig)
        loaded.pop("defaults", None)
        schema = ConfigStore.instance().load("schema.yaml").node
        merged = OmegaConf.merge(schema, loaded)
        assert isinstance(merged, DictConfig)
        return to_root(merged)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: {one_line(error)}") from error


def build(node: Mapping[str, Any], **kwargs: Any) -> Any:
    """Call a node's `_target_` with its keys and `kwargs`, which win.

    Raises: UserError if the target does not take them.
    """
    from hydra.utils import instantiate

    keys = {key: value for key, value in node.items() if key not in kwargs}
    try:
        # what is passed on is never turned into a config: param groups and paths stay what they are
        call = instantiate({**keys, "_partial_": True, "_convert_": "all"})
        return call(**kwargs)
    except (UserError, ModuleNotFoundError):  # the latter: a logger's package
        raise
    except Exception as error:  # what other people's constructors raise is theirs to choose
        reason = (str(error.__cause__ or error) or type(error).__name__).splitlines()[0]
        given = sorted({*keys, *kwargs} - {"_target_"})
        raise UserError(f"{node.get('_target_')} cannot be built from {given}: {reason}") from error
