"""`hydra/sweeper=optuna`: a search with Optuna. Its settings: rlhf_lightning/sweeps/settings.py.

Hydra loads plugins from this namespace only, at every start: what is heavy is imported late.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

if TYPE_CHECKING:
    from rlhf_lightning.sweeps.space import Space


class OptunaSweeper(Sweeper):
    """Parses the space, composes the configs of trials; the rest is in rlhf_lightning.sweeps."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.config = hydra_context, config

    def sweep(self, arguments: list[str]) -> dict[str, Any]:
        """Search until the study has its trials; the best trial's metrics.

        Raises: UserError, RunFailed; SystemExit where a signal asked to stop.
        """
        from rlhf_lightning.compose import saved_config
        from rlhf_lightning.errors import Interrupted
        from rlhf_lightning.sweeps.search import search
        from rlhf_lightning.sweeps.settings import settings_from
        from rlhf_lightning.sweeps.space import space_of

        assert self.hydra_context is not None
        self._refuse_launcher()
        tree = {
            key: OmegaConf.to_container(value, resolve=True)
            if OmegaConf.is_config(value)
            else value
            for key, value in self.settings.items()
        }
        settings = settings_from(tree)
        # the command line comes last: it replaces a key of the sweep's file
        given = [f"{key}={value}" for key, value in settings.params.items()]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        space = space_of(parser.parse_overrides([*given, *arguments]), settings.custom_space)
        base = self._base(space)
        if settings.command is None:
            self._require_beginning(space)
        try:
            return search(
                settings,
                space,
                name=settings.name or self._file() or "optuna",
                base=asdict(base),
                config_of=lambda overrides: saved_config(
                    replace(self._root(overrides), run_dir=None)
                ),
            )
        except Interrupted as error:
            # not an Exception: `rlhf` would take it for a config error
            print(f"rlhf: {error}", file=sys.stderr)
            raise SystemExit(128 + error.signum) from None

    def _base(self, space: Space) -> Any:
        """The config of what is fixed; where that is none without what is searched, with one point of the space."""
        from rlhf_lightning.errors import UserError
        from rlhf_lightning.sweeps.space import any_point

        try:
            return self._root(space.fixed)
        except UserError:
            return self._root(any_point(space))

    def _require_beginning(self, space: Space) -> None:
        """Data that is not there, a stage whose parent has not run: every trial would fail, and count.

        Raises: UserError where the fixed settings and a point of the space are refused for the same reason, which is
        then not what is searched.
        """
        from rlhf_lightning.errors import UserError
        from rlhf_lightning.sweeps.space import any_point

        # the file of the sweep would make a search of the command that a message names
        named = [item for item in space.fixed if not item.startswith("sweeps=")]
        try:
            base = self._root(space.fixed)
        except UserError:  # nothing without what is searched: the trials will tell
            return
        try:
            _begin(base, named)
        except UserError as error:
            try:
                _begin(self._root(any_point(space)), named)
            except UserError as other:
                if str(other) == str(error):
                    raise

    def _root(self, overrides: list[str]) -> Any:
        """The checked config of a trial."""
        from rlhf_lightning import compose

        assert self.hydra_context is not None
        assert self.config is not None
        loader = self.hydra_context.config_loader
        config = copy.deepcopy(loader.load_sweep_config(self.config, overrides))
        with read_write(config), open_dict(config):
            del config["hydra"]
        return compose.check(config)

    def _refuse_launcher(self) -> None:
        from rlhf_lightning.errors import UserError

        assert self.config is not None
        launcher = self.config.hydra.runtime.choices.get("hydra/launcher")
        if str(launcher).startswith("slurm"):
            raise UserError(
                "hydra/launcher must be basic where hydra/sweeper=optuna: its trials are processes of its own, and"
                f" several jobs that run this command share one study (docs/slurm.md), got {launcher!r}"
            )

    def _file(self) -> str | None:
        assert self.config is not None
        return self.config.hydra.runtime.choices.get("sweeps")


def _begin(root: Any, overrides: list[str]) -> None:
    """Raises: UserError if a run of this config could not begin."""
    from rlhf_lightning.pipeline import prepare, require_parents

    ready = prepare(root)
    if root.task != "pipeline":
        require_parents(ready.plans[0], overrides)
