"""Who may import whom."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rlhf_lightning"
MODULES = sorted(PACKAGE.rglob("*.py"))

CORE = {"config", "errors", "foreign", "interpreter"}
"""What every part may import but the pure ones (functional, batches)."""

OURS = {
    "errors": set(),
    "foreign": {"errors"},
    "interpreter": set(),
    "config": {"errors"},
    "functional": set(),
    "batches": set(),
    "processes": set(),
    "models": CORE | {"batches", "processes"},
    "data": CORE | {"batches"},
    "rewards": CORE | {"batches", "data.encode", "models", "processes"},
    "stages": CORE | {"functional", "batches", "models", "processes", "rewards", "callbacks.log"},
    "strategies": CORE | {"models", "processes", "runs.files"},
    "evaluation": CORE | {"runs.curves", "runs.files"},
    "callbacks": CORE | {"evaluation", "processes", "runs.curves", "runs.files"},
    "callbacks/pruning.py": {
        "runs",
        "sweeps",
    },  # it reports to the sweep that this run is a trial of
    "sweeps": CORE | {"compose_errors", "runs"},
    "runs": CORE,
    "slurm": CORE | {"runs", "sweeps.child", "sweeps.outcome"},
    "jobs": CORE | {"compose", "parents", "pipeline", "plan", "runs", "slurm"},
    "offline_model": CORE,
    "plan": CORE | {"model_identity", "runs"},
    "model_identity": CORE | {"data.tokenizer", "offline_model", "runs"},
    "parents": CORE | {"data.tokenizer", "plan", "runs"},
    "tasks": CORE
    | {"batches", "callbacks", "data", "evaluation", "functional", "models"}
    | {"plan", "processes", "rewards", "runs", "stages", "strategies"},
    "tasks/report.py": {"compose.defaults_diff"},
    "tasks/sweep_report.py": {"sweeps"},
    "pipeline": CORE
    | {
        "binding",
        "compose",
        "data",
        "jobs",
        "launch",
        "parents",
        "plan",
        "runs",
        "sweeps",
        "tasks",
    },
    "launch": CORE | {"plan", "runs"},
    # what a process of a stage runs: it has no command line, so it reads the config and does the task itself
    "launch/rank.py": {"compose", "data", "processes", "tasks"},
    "signatures": CORE,
    "binding": CORE | {"rewards.functions", "signatures"},
    "compose": CORE | {"binding", "compose_errors", "offline_model"},
    "compose_errors": CORE | {"binding", "compose"},
    "__main__": CORE | {"compose", "compose_errors", "pipeline", "runs", "tasks.sweep_report"},
    "__init__": set(),
}
"""Part, or one file → what it may import of ours beside itself: parts, or dotted names in them."""

PURE = ("functional", "batches", "processes")
HYDRA = {"compose.py", "compose_errors.py", "__main__.py", "sweeps/space.py"}
LIGHTNING = {
    "stages/sft.py",
    "stages/reward_model.py",
    "stages/ppo.py",
    "data/datamodule.py",
    "tasks/fit.py",
    "tasks/report.py",  # its version
}
LIGHTNING_PARTS = ("callbacks", "strategies")
BESIDE = {"launch/rank.py"}
"""Never imported by the command itself: may have torch though its part has not."""
NO_TORCH = ("config", "errors", "runs", "plan", "parents", "pipeline", "signatures", "binding")
NO_TORCH += ("model_identity", "compose", "compose_errors", "__main__", "__init__", "sweeps")
NO_TORCH += ("jobs", "launch", "slurm", "foreign", "interpreter")
"""Config errors, `dry_run=true` and `task=runs` answer without it."""


def imports(file: Path) -> set[str]:
    """Absolute dotted names of every import in a file, those inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def allowed(dotted: str, own: str, rules: set[str]) -> bool:
    """Whether `rules`, or the part itself, cover a name like `stages.ppo.PPOModule`."""
    return any(f"{dotted}.".startswith(f"{rule}.") for rule in {own, *rules})


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_a_module_imports_only_what_its_part_may(file: Path) -> None:
    name = name_of(file)
    own = name.removesuffix(".py").split("/")[0]
    names = imports(file)
    tops = {item.split(".")[0] for item in names}
    ours = {i.removeprefix("rlhf_lightning.") for i in names if i.startswith("rlhf_lightning.")}
    rules = OURS[own] | OURS.get(name, set())
    extra = {item for item in ours if not allowed(item, own, rules)}
    assert not extra, f"{name} imports {extra}"
    if own in PURE:
        beyond = tops - {"torch", "jaxtyping", "rlhf_lightning", *sys.stdlib_module_names}
        assert not beyond, f"{name} imports {beyond}"
    if own in NO_TORCH and name not in BESIDE:
        heavy = tops & {"torch", "lightning", "transformers"}
        assert not heavy, f"{name} imports {heavy}"
    if name not in HYDRA:
        assert not tops & {"hydra", "omegaconf"}, f"{name} sees Hydra"
    if name not in LIGHTNING and own not in LIGHTNING_PARTS:
        assert "lightning" not in tops, f"{name} imports lightning"
    assert "pytorch_lightning" not in tops


def test_every_part_has_its_rule_and_every_rule_its_part() -> None:
    there = {name_of(file).removesuffix(".py").split("/")[0] for file in MODULES}
    assert {rule for rule in OURS if "/" not in rule} == there


@pytest.mark.parametrize("file", sorted((PACKAGE / "stages").glob("*.py")), ids=name_of)
def test_stages_never_import_each_other_but_ppos_parts_the_rollout(file: Path) -> None:
    stages = {"sft", "reward_model", "ppo", "rollout"}
    imported = {
        item.split(".")[2] for item in imports(file) if item.startswith("rlhf_lightning.stages.")
    } & stages
    ppos = ("ppo", "ppo_update", "watching")
    assert imported <= ({"rollout"} if file.stem in ppos else set())
