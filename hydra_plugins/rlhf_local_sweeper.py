"""The default sweeper of `rlhf -m`: every combination, and a bad job does not stop the others.

Its settings: `params` is the sweep itself, key → values; `max_batch_size` jobs at a time go to the launcher.

Hydra's basic sweeper gives up before the first job when one of the jobs cannot be composed, and after a batch
when one of them failed. Hydra loads plugins from this namespace only.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobStatus, filter_overrides

from rlhf_lightning.compose_errors import JobsFailed, one_line

# a dict, not a dataclass: Hydra loads plugins before they are in sys.modules, where dataclasses look for their module
_CONFIG: dict[str, Any] = {
    "_target_": "hydra_plugins.rlhf_local_sweeper.LocalSweeper",
    "max_batch_size": None,
    "params": {},
}
ConfigStore.instance().store("local", _CONFIG, group="hydra/sweeper", provider="rlhf")


class LocalSweeper(BasicSweeper):
    """Launches the jobs that compose, counts the others as failed."""

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Run every combination of `arguments`.

        Raises: JobsFailed after the last job, if one of them failed.
        """
        assert self.hydra_context is not None
        assert self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        # the command line comes last: it replaces a key of the sweep's file
        params = {key: f"{key}={value}" for key, value in self.params.items()}
        parsed = parser.parse_overrides([*params.values(), *arguments])
        batches = self.split_arguments(parsed, self.max_batch_size)
        results: list[Any] = []
        for batch in batches:
            jobs = [job for job in batch if self._composes(job)]
            if jobs:
                results += self.launcher.launch(jobs, initial_job_idx=len(results))
        total = sum(len(batch) for batch in batches)
        finished = sum(result.status == JobStatus.COMPLETED for result in results)
        if finished < total:
            raise JobsFailed(total - finished, total)
        return results

    def _composes(self, overrides: Sequence[str]) -> bool:
        assert self.hydra_context is not None
        assert self.config is not None
        try:
            self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        except Exception as error:
            name = " ".join(filter_overrides(overrides))
            print(f"error: {name}: {one_line(error, overrides)}", file=sys.stderr)
            return False
        return True
