"""Whether the keys of foreign nodes exist: `_target_` nodes, the Trainer's keys, sources, a model's architecture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

from rlhf_lightning.config import STAGES, StrategyConfig
from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.functions import load_function
from rlhf_lightning.signatures import (
    UNKNOWN,
    Parameter,
    Signature,
    config_fields,
    model_types,
    signature,
)

HYDRA_KEYS = ("_target_", "_args_", "_convert_", "_recursive_", "_partial_")

LENGTH = "ppo.iterations, reward.prompts, sft.examples and epochs say how long a stage is"
EVALS = "<stage>.eval_every and eval_examples or eval_prompts say when and how much is validated"
OWNED_TRAINER_KEYS = {
    **dict.fromkeys(("max_steps", "max_epochs", "max_time", "min_steps", "min_epochs"), LENGTH),
    **dict.fromkeys(("limit_train_batches", "overfit_batches", "fast_dev_run"), LENGTH),
    **dict.fromkeys(("val_check_interval", "check_val_every_n_epoch", "limit_val_batches"), EVALS),
    **dict.fromkeys(("limit_test_batches", "limit_predict_batches", "num_sanity_val_steps"), EVALS),
    **dict.fromkeys(("gradient_clip_val", "gradient_clip_algorithm"), "use <stage>.grad_clip"),
    "accumulate_grad_batches": "use <stage>.micro_batch_size",
    "callbacks": "use the group callbacks",
    "logger": "use the group logger",
    "strategy": "use the group strategy",
    "default_root_dir": "use run_dir or outputs",
    "plugins": "the group strategy brings what it needs",
    "barebones": "a run has logs and checkpoints",
    "enable_model_summary": "each stage says its parameters itself",
    "log_every_n_steps": "every step is logged",
    "enable_checkpointing": "use <stage>.checkpoint_every",
    "use_distributed_sampler": "the data module shares rows out itself",
    "reload_dataloaders_every_n_epochs": "the data module does it itself",
}


def suggestion(got: str, allowed: Iterable[str], *, cutoff: float = 0.6) -> str:
    """`; did you mean X?`, or nothing."""
    close = get_close_matches(got, list(allowed), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""


LOOKING = ("runs", "sweep_report")
"""Tasks that call nothing of a config: none of its functions is imported for them."""


def check_targets(tree: dict[str, Any]) -> None:
    """Check every foreign node of the whole config.

    Raises: UserError that names the key.
    """
    _check_trainer(tree.get("trainer") or {})
    for group in ("logger", "callbacks"):
        for name, node in (tree.get(group) or {}).items():
            if node is not None:  # null switches one off
                _check_node(node, f"{group}.{name}")
                if node["_target_"].rsplit(".", 1)[-1] == "ModelCheckpoint":
                    raise UserError(
                        f"{group}.{name}._target_ must not write checkpoints: use <stage>.checkpoint_every"
                    )
    for stage in STAGES:
        _check_optimizer(tree[stage]["optimizer"], f"{stage}.optimizer")
    for name, source in tree["mix"]["sources"].items():
        _check_source(source, f"mix.sources.{name}")
    for group, parts in (
        ("reward_source.parts", tree["reward_source"]["parts"]),
        ("evaluate.known", tree["evaluate"]["known"]),
        ("reward.rank_by", tree["reward"]["rank_by"]),
    ):
        for name, part in parts.items():
            if part["kind"] == "function" and tree["task"] not in LOOKING:
                # imported and made: a wrong path or argument would else be found hours later
                load_function(part["target"], part["args"], key=f"{group}.{name}")
    _check_architecture(tree["model"]["architecture"], "model.architecture")
    if tree["reward"].get("model"):
        _check_architecture(tree["reward"]["model"]["architecture"], "reward.model.architecture")


LOGGER_PACKAGES = {
    "WandbLogger": "wandb",
    "MLFlowLogger": "mlflow",
    "CometLogger": "comet_ml",
    "NeptuneLogger": "neptune",
}
"""Class of Lightning → the module that it asks for when a logger is made: too late to be told."""


def require_logger_packages(loggers: Mapping[str, Any] | None) -> None:
    """Raises: UserError if the package of a logger that is on is not installed."""
    for key, node in (loggers or {}).items():
        package = LOGGER_PACKAGES.get((node or {}).get("_target_", "").rsplit(".", 1)[-1])
        if package is not None and find_spec(package) is None:
            raise UserError(
                f"logger.{key} must have its package installed, got no module named {package!r}:"
                f" pip install {package}"
            )


def require_strategy_package(strategy: StrategyConfig) -> None:
    """Raises: UserError if the package that a strategy needs is not installed."""
    if strategy.name.startswith("deepspeed") and find_spec("deepspeed") is None:
        raise UserError(
            f"strategy={strategy.name} must have its package installed, got no module named 'deepspeed':"
            " pip install -e '.[deepspeed]'"
        )


def bind(target: str, keys: dict[str, Any], where: str) -> None:
    """Check that `target` exists and takes `keys`.

    Raises: UserError that names the key.
    """
    try:
        accepted = signature(target)
    except LookupError:
        raise UserError(
            f"{where}._target_ must be the import path of a class or function, got {target!r}"
        ) from None
    _check_keys(accepted, keys, where, target)


def _check_keys(accepted: Signature, keys: dict[str, Any], where: str, owner: str) -> None:
    for key, value in keys.items():
        if key in accepted.parameters:
            _check_type(accepted.parameters[key], value, f"{where}.{key}")
            continue
        # keywords may go on to another function, but one that is nearly a known name is a typo
        hint = suggestion(key, accepted.parameters, cutoff=0.85 if accepted.open else 0.6)
        if hint or not accepted.open:
            raise UserError(f"{where}.{key} must be a parameter of {owner}, got {key!r}{hint}")


def _check_type(parameter: Parameter, value: Any, where: str) -> None:
    """Only what is certain: a number or a switch where the default is one."""
    default, annotation = parameter.default, parameter.annotation
    if default is UNKNOWN or value is None or not isinstance(value, str) or "str" in annotation:
        return
    if isinstance(default, bool):
        raise UserError(f"{where} must be true or false, got {value!r}")
    if isinstance(default, int | float):
        raise UserError(f"{where} must be a number, got {value!r}")


def _check_node(node: Any, where: str) -> None:
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        got = sorted(node) if isinstance(node, dict) else node
        raise UserError(f"{where}._target_ must be the import path of a class, got {got!r}")
    bind(node["_target_"], {k: v for k, v in node.items() if k not in HYDRA_KEYS}, where)
    for key, value in node.items():
        if isinstance(value, dict) and "_target_" in value:
            _check_node(value, f"{where}.{key}")


def _check_optimizer(node: Any, where: str) -> None:
    _check_node(node, where)
    target = node["_target_"]
    if "params" not in signature(target).parameters:
        raise UserError(
            f"{where}._target_ must be the import path of an optimizer (torch.optim.AdamW), got {target!r}"
        )
    lr = node.get("lr")
    if lr is not None and (isinstance(lr, str) or not lr > 0):
        raise UserError(f"{where}.lr must be > 0, got {lr!r}")


def _check_trainer(keys: dict[str, Any]) -> None:
    for key, value in keys.items():
        if key in OWNED_TRAINER_KEYS:
            raise UserError(
                f"trainer.{key} must not be set here, got {value!r}: {OWNED_TRAINER_KEYS[key]}"
            )
    bind("lightning.pytorch.Trainer", keys, "trainer")


def _check_source(source: dict[str, Any], where: str) -> None:
    target = source.get("target")
    given = [key for key in ("path", "hub", "target") if source.get(key) is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise UserError(f"{where} must have one of path, hub and target, got {got}")
    if target is not None:
        try:
            accepted = signature(target)
        except LookupError:
            raise UserError(
                f"{where}.target must be the import path of a class, got {target!r}"
            ) from None
        _check_keys(accepted, source.get("args") or {}, f"{where}.args", target)


def _check_architecture(keys: dict[str, Any], where: str) -> None:
    model_type = keys.get("model_type")
    if model_type is None:
        return
    found = config_fields(str(model_type))
    if found is None:
        hint = suggestion(str(model_type), model_types())
        raise UserError(
            f"{where}.model_type must be a model type of transformers, got {model_type!r}{hint}"
        )
    name, accepted = found
    closed = Signature(
        accepted.parameters
    )  # these configs take any keyword and keep it without a word
    rest = {key: value for key, value in keys.items() if key != "model_type"}
    if accepted.parameters:
        _check_keys(closed, rest, where, name)
