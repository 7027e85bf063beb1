"""Who may import whom."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rlhf_lightning"
MODULES = sorted(PACKAGE.rglob("*.py"))
ALWAYS = {"config", "errors"}
"""Ours that everyone may import."""

OURS = {
    "functional": {"functional"},
    "batches": set(),
    "models": {"models", "batches", "functional"},
    "data": {"data", "batches"},
    "rewards": {"rewards", "batches", "models"},
    "stages": {"stages", "functional", "batches", "models", "rewards"},
    "config": set(),
    "errors": set(),
    "signatures": set(),
    "binding": {"signatures"},
}
"""Part → the parts that it may import; parts that are not named here stand on top."""

HYDRA = {"compose.py", "compose_errors.py", "__main__.py", "pipeline.py"}
LIGHTNING = {
    "stages/sft.py",
    "stages/reward_model.py",
    "stages/ppo.py",
    "data/datamodule.py",
    "__main__.py",
}
LIGHTNING_FOLDERS = ("callbacks/", "tasks/", "strategies/")


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


def part(dotted: str) -> str:
    """rlhf_lightning.stages.ppo.X → stages; a name of the package itself → ''."""
    pieces = dotted.split(".")
    return pieces[1] if len(pieces) > 1 else ""


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_a_module_imports_only_what_its_part_may(file: Path) -> None:
    name = name_of(file)
    own = name.removesuffix(".py").split("/")[0]
    names = imports(file)
    tops = {item.split(".")[0] for item in names}
    ours = {part(item) for item in names if item.startswith("rlhf_lightning.")}
    if own in ("functional", "batches"):
        allowed = {"torch", "jaxtyping", "rlhf_lightning", *sys.stdlib_module_names}
        assert tops <= allowed, f"{name} imports {tops - allowed}"
    if own in OURS:
        extra = ours - OURS[own] - ALWAYS
        assert not extra, f"{name} imports {extra}"
    if name not in HYDRA:
        assert not tops & {"hydra", "omegaconf"}, f"{name} sees Hydra"
    if name not in LIGHTNING and not name.startswith(LIGHTNING_FOLDERS):
        assert "lightning" not in tops, f"{name} imports lightning"
    assert "pytorch_lightning" not in tops


@pytest.mark.parametrize("file", sorted((PACKAGE / "stages").glob("*.py")), ids=name_of)
def test_stages_never_import_each_other_but_ppo_its_rollout(file: Path) -> None:
    stages = {"sft", "reward_model", "ppo", "rollout"}
    imported = {
        item.split(".")[2] for item in imports(file) if item.startswith("rlhf_lightning.stages.")
    } & stages
    assert imported <= ({"rollout"} if file.stem == "ppo" else set())
