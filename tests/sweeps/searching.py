"""A search whose trials are the fake command, here or in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from rlhf_lightning.errors import UserError
from rlhf_lightning.sweeps.search import search
from rlhf_lightning.sweeps.settings import settings_from
from rlhf_lightning.sweeps.space import space_of

ROOT = Path(__file__).resolve().parents[2]
FAKE = [sys.executable, str(Path(__file__).with_name("fake_rlhf.py"))]
SPACE = ["ppo.kl_coef=tag(log,interval(0.005,0.2))"]


def run_search(tmp: Path, space: list[str] | None = None, **settings: Any) -> dict[str, Any]:
    """`rlhf -m hydra/sweeper=optuna SPACE` with the fake command."""
    outputs = str(tmp / "outputs")

    def config_of(overrides: list[str]) -> str:
        kl_coef, seed = 0.1, 0
        for override in OverridesParser.create().parse_overrides(overrides):
            if override.key_or_group == "ppo.kl_coef":
                kl_coef = override.value()
            if override.key_or_group == "seed":
                seed = override.value()
        if kl_coef == "refused":
            raise UserError("ppo.kl_coef must be a number, got 'refused'")
        return yaml.safe_dump({"outputs": outputs, "ppo": {"kl_coef": kl_coef}, "seed": seed})

    tree = {"command": FAKE, "sampler": {"name": "random"}, **settings}
    parsed = OverridesParser.create().parse_overrides(space or SPACE)
    return search(
        settings_from(tree),
        space_of(parsed, tree.get("custom_space")),
        name="test",
        base={"outputs": outputs, "run_dir": str(tmp / "sweep"), "dry_run": False},
        config_of=config_of,
    )


def start_search(
    tmp: Path, env: dict[str, str] | None = None, **settings: Any
) -> subprocess.Popen[bytes]:
    """The same in a process of its own."""
    code = (
        "import json, sys; from pathlib import Path; from tests.sweeps.searching import run_search;"
        "run_search(Path(sys.argv[1]), **json.loads(sys.argv[2]))"
    )
    with open(tmp / "stderr.txt", "ab") as errors:  # for the reader of a failure
        return subprocess.Popen(
            [sys.executable, "-c", code, str(tmp), json.dumps(settings)],
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )


def records(tmp: Path) -> list[dict[str, Any]]:
    """trials/*.json in order."""
    files = sorted((tmp / "sweep" / "trials").glob("*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def states(tmp: Path) -> list[str]:
    return [record["state"] for record in records(tmp)]


def starts(tmp: Path) -> int:
    """Processes of trials that began."""
    files = (tmp / "outputs" / "ppo").glob("*/starts.txt")
    return sum(len(file.read_text(encoding="utf-8").split()) for file in files)


def until(
    condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 120
) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended early with {process.returncode}"
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.02)


def done(tmp: Path) -> int:
    """Trials in a final state."""
    return sum(state in ("COMPLETE", "FAIL", "PRUNED") for state in states(tmp))
