"""Shape types are checked in tests only: hook the functions before anything imports them."""

from jaxtyping import install_import_hook

# the numeric tower: an int is a float to Python's typing rules, and so to a caller
install_import_hook(
    "rlhf_lightning.functional",
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)
