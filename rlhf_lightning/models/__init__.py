"""Models of the ecosystem, and the few things this project needs of them.

`loading` makes, loads and saves them; `forward` runs prompt + response through them and keeps only what is needed;
`generation` samples with log-probabilities.
"""
