"""Which records each stage reads, so that a mix without them is refused before any work begins."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_lightning.config import RootConfig
from rlhf_lightning.data.mixture import Mixture
from rlhf_lightning.errors import UserError

_WAYS_ROUND = {
    (
        "pretrain",
        "text",
    ): "; none is needed by sft.init.policy=none, a run or model=hf model.path=...",
}


def require_records(mixture: Mixture, root: RootConfig, task: str) -> None:
    """Raises: UserError if the mix lacks a kind of record, in a split, that the stage reads, or a labeler."""
    for kind, splits in _needs(root, task):
        for split in splits.split():
            try:
                mixture.size(kind, split)
            except UserError as error:
                raise UserError(f"{error}{_WAYS_ROUND.get((task, kind), '')}") from None
    hp = root.reward
    ranked = hp.rank_by or mixture.ranks_prompts
    if task == "reward" and hp.completions == "policy" and not ranked:
        raise UserError(
            "reward.completions must be speakers for a mix whose sources have no labelers (or name a function as"
            " reward.rank_by.NAME.target), got 'policy'"
        )


def _needs(root: RootConfig, task: str) -> Iterator[tuple[str, str]]:
    """(kind, splits) of everything that the stage reads."""
    if task in ("pretrain", "sft"):
        yield "text" if task == "pretrain" else "demonstration", "train validation"
    if task == "reward":
        own = root.reward.completions == "speakers"
        yield "comparison" if own else "prompt", "train validation test"
    if task == "ppo":
        yield "prompt", "train validation"
        if root.ppo.ptx.coef > 0:
            yield "text", "train"
    if task == "evaluate":
        yield "prompt", "test"
