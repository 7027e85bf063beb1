"""How models are spread over the processes of a stage: Lightning strategies, and what they do with weights.

`build` makes the one of the settings, `data_parallel` is ddp and what the others share, `sharded` is fsdp2,
`deepspeed` is ZeRO. They differ in where numbers lie, never in what is computed: every process makes the whole global
batch and computes its rows (`rlhf_lightning.processes`), and gradients are summed, since losses are divided by the
counts of the global batch.
"""
