"""The parameters of an importable class or function, read from its source without importing it.

Importing Lightning or torch only to see a typo would take seconds. What the sources do not tell (a compiled or
generated target) is imported after all.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

UNKNOWN: Any = object()
"""A default that is not a literal, or none at all."""

ROOTS = ("object", "ABC", "Protocol", "Generic")
"""Bases that add no parameter."""


@dataclass(frozen=True)
class Parameter:
    """One parameter: its default where that is a literal, and its annotation as written."""

    default: Any = UNKNOWN
    annotation: str = ""


@dataclass(frozen=True)
class Signature:
    """What a call accepts by name; `open` where `**kwargs` go somewhere that cannot be followed."""

    parameters: dict[str, Parameter] = field(default_factory=dict)
    open: bool = False


@dataclass(frozen=True)
class _Place:
    """A definition and the file that it stands in."""

    node: ast.ClassDef | ast.FunctionDef
    file: Path
    module: str


@lru_cache(maxsize=256)
def signature(target: str) -> Signature:
    """The signature of the class or function at the import path `target`.

    Raises: LookupError if there is nothing at that path.
    """
    place = _find(target)
    if place is None:
        return _imported(target)
    if isinstance(place.node, ast.FunctionDef):
        return _of_function(place.node, method=False)
    return _of_class(place)


def config_fields(model_type: str) -> tuple[str, Signature] | None:
    """Name and fields of the transformers config class of `model_type`; None if it cannot be read."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return None
    models = Path(next(iter(spec.submodule_search_locations))) / "models"
    folder = models / model_type.replace("-", "_")
    files = sorted(folder.glob("configuration_*.py")) or sorted(models.glob("*/configuration_*.py"))
    for file in files:
        if model_type not in file.read_text(encoding="utf-8"):
            continue
        module = f"transformers.models.{file.parent.name}.{file.stem}"
        for node in _tree(file).body:
            if isinstance(node, ast.ClassDef) and _class_constant(node, "model_type") == model_type:
                found = _of_class(_Place(node, file, module))
                # names that the class maps onto its own: hidden_size for n_embd
                aliases = dict.fromkeys(_class_constant(node, "attribute_map") or {}, Parameter())
                return node.name, Signature({**aliases, **found.parameters}, found.open)
    return None


def model_types() -> list[str]:
    """Folder names of transformers' models: near enough to its model types for a suggestion."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return []
    models = Path(next(iter(spec.submodule_search_locations))) / "models"
    return sorted(path.name for path in models.iterdir() if path.is_dir())


def _find(target: str, depth: int = 0) -> _Place | None:
    """The definition behind an import path: the module's file, then the name in it, through re-exports."""
    top, *rest = target.split(".")
    file = _module_file(top)
    if file is None or depth > 20:
        return None
    module = top
    while rest:
        name = rest[0]
        found = _in_module(name, file, module, depth)
        if found is not None:
            return found if len(rest) == 1 else None
        child = _child(file, name)
        if child is None:
            return None
        file, module, rest = child, f"{module}.{name}", rest[1:]
    return None


def _module_file(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    # a namespace package has no file of its own
    return Path(next(iter(spec.submodule_search_locations or [""]))) / "__init__.py"


def _child(file: Path, name: str) -> Path | None:
    if file.name != "__init__.py":
        return None
    for candidate in (file.parent / name / "__init__.py", file.parent / f"{name}.py"):
        if candidate.exists():
            return candidate
    return file.parent / name / "__init__.py" if (file.parent / name).is_dir() else None


@lru_cache(maxsize=512)
def _tree(file: Path) -> ast.Module:
    if not file.exists():
        return ast.Module(body=[], type_ignores=[])
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise LookupError(f"{file}: {error}") from error


def _in_module(name: str, file: Path, module: str, depth: int) -> _Place | None:
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in _statements(_tree(file).body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return _Place(node, file, module)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(f"{_absolute(node, package)}.{alias.name}", depth + 1)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
            names = [t.id for t in node.targets if isinstance(t, ast.Name)]
            if name in names and node.value.id != name:
                return _in_module(node.value.id, file, module, depth + 1)
    return None


def _statements(body: list[ast.stmt]) -> list[ast.stmt]:
    """Top-level statements, those inside if and try included."""
    found: list[ast.stmt] = []
    for node in body:
        found.append(node)
        if isinstance(node, ast.If):
            found += _statements(node.body + node.orelse)
        elif isinstance(node, ast.Try):
            handlers = [stmt for handler in node.handlers for stmt in handler.body]
            found += _statements(node.body + handlers + node.orelse)
    return found


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    base = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def _of_class(place: _Place, depth: int = 0) -> Signature:
    assert isinstance(place.node, ast.ClassDef)
    init = next(
        (n for n in place.node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"),
        None,
    )
    own = _of_function(init, method=True) if init else Signature(_fields(place.node))
    names = [name for name in map(_base_name, place.node.bases) if name not in ROOTS]
    if (init is not None and not own.open) or not names or depth > 10:
        return own
    parameters = dict(own.parameters)
    is_open = False
    for name in names:
        base = _in_module(name, place.file, place.module, 0)
        if base is None or not isinstance(base.node, ast.ClassDef):
            is_open = True
            continue
        above = _of_class(base, depth + 1)
        parameters = {**above.parameters, **parameters}
        # **kwargs that reach a base without parameters of its own go elsewhere
        is_open = is_open or above.open or (own.open and not above.parameters)
    return Signature(parameters, is_open)


def _base_name(node: ast.expr) -> str:
    return ast.unparse(node).split("[")[0]


def _fields(node: ast.ClassDef) -> dict[str, Parameter]:
    """Annotated class attributes: the parameters of a dataclass."""
    found: dict[str, Parameter] = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            annotation = ast.unparse(item.annotation)
            if "ClassVar" not in annotation:
                found[item.target.id] = Parameter(_literal(item.value), annotation)
    return found


def _of_function(node: ast.FunctionDef, *, method: bool) -> Signature:
    args = node.args
    positional = args.args[1:] if method else args.args
    defaults: list[ast.expr | None] = [None] * len(positional)
    if args.defaults:
        defaults[-len(args.defaults) :] = args.defaults
    pairs = [
        *zip(positional, defaults, strict=True),
        *zip(args.kwonlyargs, args.kw_defaults, strict=True),
    ]
    parameters = {
        arg.arg: Parameter(_literal(default), ast.unparse(arg.annotation) if arg.annotation else "")
        for arg, default in pairs
    }
    return Signature(parameters, args.kwarg is not None)


def _literal(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node is not None else UNKNOWN
    except ValueError:
        return UNKNOWN


def _class_constant(node: ast.ClassDef, name: str) -> Any:
    for item in node.body:
        targets = item.targets if isinstance(item, ast.Assign) else [getattr(item, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == name for t in targets):
            return _literal(getattr(item, "value", None))
    return None


def _imported(target: str) -> Signature:
    """The signature of a target whose source could not be followed."""
    module, _, name = target.rpartition(".")
    if not module:
        raise LookupError(f"{target}: not in a module")
    try:
        obj = getattr(importlib.import_module(module), name)
        found = inspect.signature(obj).parameters.values()
    except (ImportError, AttributeError) as error:
        raise LookupError(f"{target}: {error}") from error
    except (TypeError, ValueError):
        return Signature(open=True)
    return Signature(
        {
            p.name: Parameter(UNKNOWN if p.default is p.empty else p.default)
            for p in found
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        },
        any(p.kind is p.VAR_KEYWORD for p in found),
    )
