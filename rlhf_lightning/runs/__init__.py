"""Where results live: a run is a directory that its config determines, owned by one process at a
time.

`identity` says which run a config is, `directory` opens it, `lease` keeps others out meanwhile,
`artifact` is what the next stage loads, `search` finds runs again, `listing` shows them, `signals`
ends them in good order. Nothing here imports torch, Lightning or Hydra: config errors and listings
answer at once.
"""

from rlhf_lightning.runs.artifact import Artifact, new_artifact, resolve_artifact
from rlhf_lightning.runs.directory import Run, claim, run_path
from rlhf_lightning.runs.files import link, mark_latest
from rlhf_lightning.runs.identity import (
    FORMAT_VERSION,
    Difference,
    canonical_json,
    differences,
    run_hash,
    run_name,
    sha256_file,
    sha256_tree,
)
from rlhf_lightning.runs.search import RunSummary, find_runs, nearest
from rlhf_lightning.runs.signals import Stop, graceful_signals

__all__ = [
    "FORMAT_VERSION",
    "Artifact",
    "Difference",
    "Run",
    "RunSummary",
    "Stop",
    "canonical_json",
    "claim",
    "differences",
    "find_runs",
    "graceful_signals",
    "link",
    "mark_latest",
    "nearest",
    "new_artifact",
    "resolve_artifact",
    "run_hash",
    "run_name",
    "run_path",
    "sha256_file",
    "sha256_tree",
]
