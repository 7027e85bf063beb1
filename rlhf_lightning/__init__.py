"""The InstructGPT recipe as a suite of experiments.

`__main__` is the one way in: `compose` and `config` turn a command line into a checked tree of dataclasses, and
`pipeline` runs a stage or the chain of them. `functional` holds the maths, `batches` the tensors that flow, `models`,
`data` and `rewards` what is trained, on what and towards what, `stages` the paper's three steps as LightningModules,
`evaluation` what is measured afterwards, `runs` where results live and how a run is found, owned and continued.
"""

__version__ = "0.1.0"
