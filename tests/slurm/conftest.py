"""A real SLURM cluster of two nodes on this machine: the one that is there, or one that is started for this session."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import ROOT

DAEMONS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "sinfo")
SCRIPTS = Path(os.environ.get("RLHF_SLURM_TEST", ROOT.parent / "shared" / "slurm"))
"""Of the test cluster: slurm_up.sh, slurm_down.sh, slurm_kill_node.sh."""


@dataclass(frozen=True)
class Cluster:
    """A running cluster; its environment is that of the tests meanwhile."""

    nodes: tuple[str, str]

    def kill(self, node: str, how: str) -> None:
        """A node dies: crash | hang | daemon."""
        subprocess.run([SCRIPTS / "slurm_kill_node.sh", node, how], check=True, timeout=300)

    def revive(self, node: str) -> None:
        """Both nodes are there again, empty."""
        # refused where SLURM has taken it back already
        command = ["scontrol", "update", f"nodename={node}", "state=resume"]
        subprocess.run(command, check=False, capture_output=True, timeout=60)
        subprocess.run(
            [SCRIPTS / "slurm_up.sh"], check=True, timeout=200, stdout=subprocess.DEVNULL
        )


def _missing() -> str | None:
    """Why there is no cluster; None if there can be one."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [name for name in DAEMONS if shutil.which(name, path=path) is None]
    if missing:
        return f"no SLURM here: {missing[0]} is not installed (.ci/run says what is needed)"
    if not (SCRIPTS / "slurm_up.sh").is_file():
        return f"no scripts of the test cluster at {SCRIPTS} (RLHF_SLURM_TEST names their folder)"
    if os.getuid() != 0:
        return "the test cluster's daemons need root"
    return None


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two idle nodes."""
    reason = _missing()
    if reason is not None:
        pytest.skip(reason)
    given = "SLURM_CONF" in os.environ and "SLURM_TEST_DIR" in os.environ
    # a port and names of its own: pytest's workers may each have a cluster
    own = os.getpid() % 900
    settings = {
        "SLURM_TEST_DIR": os.environ.get("SLURM_TEST_DIR") or tempfile.mkdtemp(prefix="slurm"),
        "SLURM_TEST_PORT": os.environ.get("SLURM_TEST_PORT", str(20_000 + 40 * own)),
        "SLURM_TEST_PREFIX": os.environ.get("SLURM_TEST_PREFIX", f"t{own}n"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in settings.items():
            patch.setenv(key, value)
        if not given:
            up = subprocess.run(
                [SCRIPTS / "slurm_up.sh"], capture_output=True, text=True, timeout=200
            )
            assert up.returncode == 0, up.stdout + up.stderr
        patch.setenv("SLURM_CONF", f"{settings['SLURM_TEST_DIR']}/etc/slurm.conf")
        prefix = settings["SLURM_TEST_PREFIX"]
        yield Cluster((f"{prefix}1", f"{prefix}2"))
        if not given:
            subprocess.run([SCRIPTS / "slurm_down.sh", "--purge"], timeout=120, check=True)
