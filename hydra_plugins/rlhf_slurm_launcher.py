"""`hydra/launcher=slurm`: the jobs of a multirun as SLURM jobs. Its settings: rlhf_lightning/config/slurm.py.

Hydra loads plugins from this namespace only, at every start: what is heavy is imported late.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from omegaconf import OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

KEY = "hydra.launcher"


class SlurmLauncher(BasicLauncher):
    """Checks all jobs, submits them as one array, and waits."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = {
            key: OmegaConf.to_container(value, resolve=True)
            if OmegaConf.is_config(value)
            else value
            for key, value in settings.items()
        }

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """One result a job; `dry_run=true` is answered here, without a job.

        Raises: UserError before anything is submitted where the settings are wrong, RunFailed where sbatch refuses.
        """
        from rlhf_lightning.jobs import Request, launch

        setup_globals()
        assert self.config is not None
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        results: list[JobReturn] = []
        requests: list[Request] = []
        for i, overrides in enumerate(job_overrides):
            results.append(JobReturn(overrides=list(filter_overrides(overrides))))
            try:
                root = self._root(overrides)
            except Exception as error:
                self._failed(results[i], error)
                continue
            requests.append(Request(i, root, list(filter_overrides(overrides))))
        if requests and all(request.root.dry_run for request in requests):
            return super().launch(job_overrides, initial_job_idx)
        for request, metrics, error in launch(requests, self._checked_settings()):
            result = results[request.index]
            if error is not None:
                self._failed(result, error)
            else:
                result.status, result.return_value = JobStatus.COMPLETED, metrics
        return results

    def _checked_settings(self) -> Any:
        from rlhf_lightning.compose_errors import one_line
        from rlhf_lightning.config import SlurmConfig
        from rlhf_lightning.errors import UserError

        try:
            merged = OmegaConf.merge(OmegaConf.structured(SlurmConfig), self.settings)
            return OmegaConf.to_object(merged)
        except UserError as error:
            raise UserError(str(error).replace("slurm.", f"{KEY}.")) from None
        except OmegaConfBaseException as error:
            raise UserError(f"{KEY}.{one_line(error)}") from None

    def _root(self, overrides: Sequence[str]) -> Any:
        """The checked config of a job."""
        from rlhf_lightning import compose

        assert self.hydra_context is not None
        assert self.config is not None
        loader = self.hydra_context.config_loader
        config = copy.deepcopy(loader.load_sweep_config(self.config, list(overrides)))
        with read_write(config), open_dict(config):
            del config["hydra"]
        return compose.check(config)

    def _failed(self, result: JobReturn, error: BaseException) -> None:
        from rlhf_lightning.compose_errors import one_line

        print(f"error: {' '.join(result.overrides or [])}: {one_line(error)}", file=sys.stderr)
        result.status, result.return_value = JobStatus.FAILED, error
