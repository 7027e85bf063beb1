"""`srun python -m rlhf_lightning.slurm task=ppo ...` in a batch script: `rlhf task=ppo ...` that outlives time limits.

`--max-requeues N` before the overrides bounds how often the job goes back into the queue; 20 without it.
"""

from __future__ import annotations

import sys

from rlhf_lightning.config import SlurmConfig
from rlhf_lightning.errors import UserError
from rlhf_lightning.interpreter import python
from rlhf_lightning.slurm.task import Task


def main(argv: list[str]) -> int:
    """Exit codes are those of `rlhf`."""
    limit, arguments = SlurmConfig.max_requeues, argv
    try:
        if argv and argv[0] == "--max-requeues":
            given, arguments = argv[1] if len(argv) > 1 else "nothing", argv[2:]
            if not given.isdigit():
                raise UserError(f"--max-requeues must be an integer >= 0, got {given!r}")
            limit = int(given)
        if {"-m", "--multirun"} & set(arguments):
            raise UserError(
                "a batch script must run one job, got -m: submit an array, or use hydra/launcher=slurm"
            )
        task = Task(None, max_requeues=limit)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return task.run([*python(), "-m", "rlhf_lightning", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
