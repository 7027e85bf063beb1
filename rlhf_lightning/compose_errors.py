"""Hydra's and OmegaConf's errors as one line: the dotted key, what was got, what is allowed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import yaml
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from rlhf_lightning.binding import OWNED_TRAINER_KEYS, suggestion
from rlhf_lightning.errors import RunFailed, UserError


class JobsFailed(RunFailed):
    """Some jobs of a multirun failed; each was reported when it did."""

    def __init__(self, failed: int, total: int) -> None:
        self.failed, self.total = failed, total
        super().__init__(f"{failed} of {total} jobs failed")


def is_config_error(error: BaseException) -> bool:
    """Whether the error is about the config, so the user's to mend."""
    kinds = (
        UserError,
        OmegaConfBaseException,
        ConfigCompositionException,
        OverrideParseException,
        yaml.YAMLError,
    )
    return isinstance(error, kinds)


def one_line(error: BaseException, overrides: Sequence[str] = ()) -> str:
    """What is wrong with the config, in one line; `overrides` are those of the command line."""
    if "Config group override must be a string" in str(error):
        return _bad_group_value(overrides)
    if isinstance(error, AssertionError) and "Unexpected type for root" in str(error):
        return _below_null(overrides)
    # a composition error can come from what Hydra could not do, which tells more
    for cause in _chain(error):
        if isinstance(cause, MissingConfigException):
            return _missing_option(cause)
        if isinstance(cause, OverrideParseException):
            return _bad_override(cause)
        if isinstance(cause, yaml.YAMLError):
            return _bad_yaml(cause)
        if isinstance(cause, OmegaConfBaseException):
            return _bad_value(cause, error)
    return _composition(error)


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or (
            None if current.__suppress_context__ else current.__context__
        )
    return chain


def _flat(text: object) -> str:
    return " ".join(str(text).split())


OWN = {
    "model/": "a model of the hub or a folder: model=hf model.path",
    "mix/": "a file or folder of yours: mix=files mix.sources.mine.path",
}
"""Group → how to name what is no preset."""


def _missing_option(error: MissingConfigException) -> str:
    path = (error.missing_cfg_file or "").removesuffix(".yaml")
    group, _, got = path.rpartition("/")
    if path.startswith(tuple(OWN)):
        group, _, got = path.partition("/")
    if not error.options or not group:
        return _flat(error)
    options = sorted(error.options)
    hint = suggestion(got, options)
    if not hint and f"{group}/" in OWN:
        hint = f"; {OWN[f'{group}/']}={got}"
    return f"{group} must be one of {', '.join(options)}, got {got!r}{hint}"


def _bad_group_value(overrides: Sequence[str]) -> str:
    """A number, a null or a dict where a group's option should be: Hydra does not say where."""
    from rlhf_lightning.compose import conf_dir

    for override in overrides:
        key, _, value = override.partition("=")
        group = key.partition("@")[0]
        options = sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))
        if key == "lora" and value == "null":
            without = " ".join(f"{stage}.lora=null" for stage in ("sft", "reward", "ppo"))
            return (
                f"lora must be one of {', '.join(options)}, got null; without adapters: {without}"
            )
        if group and options and value not in options:
            return f"{key} must be one of {', '.join(options)}, got {value!r}{suggestion(value, options)}"
    return "a group's option must be the name of one of its files, got a number, null or a dict"


_GROUP_FOR = {"lora": "adapter@{}=lora", "model": "model@{}=NAME"}
"""Last name of a node that may be null → the override that fills it."""


def _below_null(overrides: Sequence[str]) -> str:
    """A setting of a node that is null: OmegaConf does not say which."""
    from dataclasses import asdict

    from rlhf_lightning.compose import default_root, flatten

    default = flatten(asdict(default_root()))
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        parts = key.split(".")
        for node in (".".join(parts[:i]) for i in range(1, len(parts))):
            if node in default and default[node] is None:
                how = _GROUP_FOR.get(node.rpartition(".")[2], "{}={{...}}").format(node)
                return f"{node} must be filled ({how}) where {key} is given, got null"
    return "a setting must not be given below a node that is null"


def _bad_override(error: OverrideParseException) -> str:
    return (
        f"{error.override!r} must be KEY=VALUE, got {_flat(error.message).split(' See https')[0]}"
    )


def _bad_yaml(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{mark.name}, line {mark.line + 1}" if mark else "a config file"
    return f"{where} must be YAML, got: {_flat(getattr(error, 'problem', None) or error)}"


def _bad_value(error: OmegaConfBaseException, outer: BaseException) -> str:
    key, text = str(error.full_key or ""), _flat(error.msg or error).split(" full_key:")[0]
    where = _file_of(outer)
    if isinstance(error, MissingMandatoryValue):
        return f"{key} must be given, got nothing: {key}=..."
    if isinstance(error, InterpolationKeyError | InterpolationResolutionError):
        return f"{key} must refer to a key that exists, got: {text}{where}"
    if (
        isinstance(error, ConfigKeyError)
        or "not in struct" in text
        or re.search(r"Key '.*' not in '", text)
    ):
        return f"{key} must be a known setting, got an unknown key{where}{_similar_key(key)}"
    if isinstance(error, ValidationError):
        return _bad_type(key, text, where)
    return f"{key}: {text}{where}" if key else f"{text}{where}"


_KINDS = {
    "Integer": "an integer",
    "Float": "a number",
    "Boolean": "true or false",
    "String": "a string",
}


def _bad_type(key: str, text: str, where: str) -> str:
    match = re.match(r"Value '(.*)' of type '(.*)' could not be converted to (\w+)", text)
    if match:
        value, _, kind = match.groups()
        return f"{key} must be {_KINDS.get(kind, kind)}, got {value!r}{where}"
    match = re.match(r"Value '(.*)' is not a valid bool", text)
    if match:
        return f"{key} must be true or false, got {match.group(1)!r}{where}"
    if "not Optional" in text or "Incompatible value 'None'" in text:
        return f"{key} must not be null{where}"
    match = re.match(r"Invalid type assigned: (\w+) is not a subclass of (\w+)", text)
    if match:
        return f"{key} must be a group of settings, got a {match.group(1)}{where}"
    return f"{key} must be of its declared type, got: {text}{where}"


def _file_of(error: BaseException) -> str:
    match = re.search(r"In '([^']+)'", str(error))
    return f" in {match.group(1)}.yaml" if match else ""


@lru_cache(maxsize=1)
def _known_keys() -> tuple[str, ...]:
    """Every dotted key of the default config, nodes and leaves."""
    from dataclasses import asdict

    from rlhf_lightning.compose import default_root, flatten

    try:
        leaves = flatten(asdict(default_root()))
    except (
        Exception
    ):  # the default itself does not compose: the first message is the one that matters
        return ()
    parts = (key.split(".") for key in leaves)
    return tuple(sorted({".".join(p[: i + 1]) for p in parts for i in range(len(p))}))


ELSEWHERE = {
    "resume": "the same command continues a run",
    "ckpt_path": "the same command continues a run",
    "n_trials": "did you mean hydra.sweeper.n_trials, with -m hydra/sweeper=optuna?",
    "trainer.gpus": "did you mean trainer.devices?",
    "mix.path": "a file of yours: mix=files mix.sources.mine.path=...",
} | {f"trainer.{key}": how for key, how in OWNED_TRAINER_KEYS.items()}
"""What people know from other tools → what it is called here."""


def _similar_key(key: str) -> str:
    if key in ELSEWHERE:
        return f"; {ELSEWHERE[key]}"
    known = _known_keys()
    last = key.rpartition(".")[2]
    same_name = [k for k in known if k.rpartition(".")[2] == last]
    near = [k for k in same_name if k.partition(".")[0] == key.partition(".")[0]]
    same_name = near or same_name
    if same_name and key not in known:
        return f"; did you mean {' or '.join(same_name[:3])}?"
    siblings = [k for k in known if k.rpartition(".")[0] == key.rpartition(".")[0]]
    return suggestion(key, siblings, cutoff=0.75) or suggestion(key, known, cutoff=0.75)


def _composition(error: BaseException) -> str:
    text = str(error)
    match = re.search(r"Could not override '([^']+)'", text)
    if match and "No match in the defaults list" in text:
        return f"{match.group(1)} must be a group of the config{_similar_key(match.group(1))}"
    match = re.search(
        r"Could not override '([^']+)'\.\s+Did you mean to override (?:one of )?([^?]+)\?", text
    )
    if match:
        got, options = match.groups()
        return f"{got} must be one of {options}{suggestion(got, options.split(', '))}"
    match = re.search(r"Override (\S+) looks like a config group", text)
    if match:
        group = match.group(1).partition("=")[0]
        return f"{group} must be GROUP@PLACE of a group that exists, got {match.group(1)!r}"
    match = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if match:
        return f"{match.group(1)!r} has several values: add -m to run one job for each, or quote it"
    match = re.search(r"Sweep parameters '([^']+)' requires --multirun", text)
    if match:
        return f"{match.group(1)!r} is a sweep: add -m to run one job for each value"
    match = re.search(r"An item is already at '([^']+)'", text)
    if match:
        return f"{match.group(1)} exists already: leave out the +"
    return _flat(text) or type(error).__name__
