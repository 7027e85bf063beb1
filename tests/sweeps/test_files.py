"""The sweeps that come with the project mean what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from rlhf_lightning.compose import check, compose, conf_dir
from rlhf_lightning.errors import UserError
from rlhf_lightning.sweeps.comparisons import parse_all
from rlhf_lightning.sweeps.pruning import make_pruner
from rlhf_lightning.sweeps.samplers import make_sampler
from rlhf_lightning.sweeps.settings import settings_from
from rlhf_lightning.sweeps.space import as_override, space_of

FOLDER = conf_dir() / "sweeps"
SEARCHES = (
    "mix_weights",
    "model_size",
    "overoptimization",
    "ppo_kl_lr",
    "reward_lr",
    "sft_lr",
)


def sweeper_of(name: str) -> dict[str, Any]:
    tree = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    assert {"override /hydra/sweeper": "optuna"} in tree["defaults"]
    assert tree["hydra"]["mode"] == "MULTIRUN"
    return tree["hydra"]["sweeper"]


def corner(distribution: Any) -> Any:
    return getattr(distribution, "low", None) or getattr(distribution, "choices", [None])[0]


@pytest.mark.parametrize("name", SEARCHES)
def test_settings_and_space_are_right_and_a_corner_of_it_is_a_config(name: str) -> None:
    settings = settings_from(sweeper_of(name))
    parse_all(settings.constraints)
    make_pruner(settings.pruner)
    make_sampler(settings.sampler, 0)
    items = [f"{key}={value}" for key, value in settings.params.items()]
    space = space_of(OverridesParser.create().parse_overrides(items))
    assert not space.fixed
    if settings.sampler.name == "grid":
        assert len(space.grid(0)) in (4, 12)  # 2 × 2 and 2 × 2 × 3
    chosen = [as_override(key, corner(d)) for key, d in space.distributions.items()]
    try:
        check(compose([f"sweeps={name}", "mix.root=/x", *chosen]))
    except UserError as error:
        raise AssertionError(f"{name}: {error}") from error


def test_every_file_has_its_line_in_the_readme() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for file in Path(FOLDER).glob("*.yaml"):
        assert f"| `{file.stem}` |" in readme
    assert {file.stem for file in Path(FOLDER).glob("*.yaml")} == {"kl", *SEARCHES}
