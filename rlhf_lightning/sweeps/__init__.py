"""A search over configs: trials are processes of their own, the study lies in a storage that several machines share.

`settings` are the keys of hydra.sweeper, `space` reads Hydra's sweep grammar, `comparisons` the constraints, `samplers`
and `pruning` build what Optuna brings and the rules of this field, `storage` opens the study, `queue` hands out
trials, `worker` runs them, `outcome` reads how they ended, `record` keeps trials/ and best.yaml, `tensorboard` shows
them there, `child` is the trial's side; `reading` and `importance` are for the report of a sweep. Nothing here imports
torch or Lightning; Optuna is imported late.
"""
