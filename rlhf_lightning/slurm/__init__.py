"""Runs as SLURM jobs.

`task` is what a job runs: our command in a process of its own, put back into the queue with a checkpoint when its time
is up. `cluster` asks and tells SLURM, `folder` holds what is known of one job, `submit` hands jobs over (by submitit),
`waiting` waits for them. Nothing here imports torch, Lightning, Hydra; submitit is imported where jobs are submitted.
"""
