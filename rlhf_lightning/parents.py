"""What a stage starts from: which parents are there, verified, and of one tokenizer.

All of it answers without torch, before anything runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf_lightning.config import RootConfig
from rlhf_lightning.data.tokenizer import tokenizer_fingerprint
from rlhf_lightning.errors import UserError
from rlhf_lightning.plan import StagePlan
from rlhf_lightning.runs import Artifact, resolve_artifact, run_hash
from rlhf_lightning.runs.search import is_run, read_run


def state(plan: StagePlan) -> str:
    """new, continued, reused, or refused: `run_dir` holds another run."""
    if not is_run(plan.path):
        return "new"
    run = read_run(plan.path)
    if run_hash(run.identity) != run_hash(plan.identity):
        return "refused"
    return "reused" if run.status == "finished" else "continued"


def missing_parents(plan: StagePlan) -> list[StagePlan]:
    """Runs that a single stage starts from and that are not finished."""
    parents = {p.path: p for p in plan.parents.values() if isinstance(p, StagePlan)}
    return [parent for parent in parents.values() if state(parent) != "reused"]


def artifact(plan: StagePlan, role: str) -> Artifact:
    """A parent's verified artifact.

    Raises: UserError with the key that would name another one.
    """
    parent = plan.parents[role]
    if isinstance(parent, Artifact):
        return parent
    return resolve_artifact(parent.path, stages=(parent.task,), key=key_of(plan, role))


def with_finished_parents(plan: StagePlan) -> StagePlan:
    """The plan with the artifacts of the parents that are finished, each verified.

    Raises: UserError if one is not as it was written, or two would read different tokens.
    """
    require_one_tokenizer(plan)
    there = {
        role: artifact(plan, role)
        for role, parent in plan.parents.items()
        if isinstance(parent, Artifact) or state(parent) == "reused"
    }
    return replace(plan, parents=plan.parents | there)


def key_of(plan: StagePlan, role: str) -> str:
    """The setting that names a parent."""
    root: RootConfig = plan.root
    if role.startswith("reward."):  # the members of an ensemble are named together
        role = "reward"
    if role == "comparisons":
        return "reward_source.parts"
    if plan.task == "evaluate":
        # null: the one that PPO was trained against
        ppos = role == "reward" and root.evaluate.reward is None and root.ppo.init.reward
        return "ppo.init.reward" if ppos else f"evaluate.{role}"
    name = {"init": "init.policy", "policy": "init.policy", "reward": "init.reward"}.get(role, role)
    return f"{plan.task}.{name}"


@dataclass(frozen=True)
class _Reader:
    """A parent that is there, or whose tokenizer is because training does not change it."""

    role: str
    folder: Path
    given: bool
    """Named by the user, not planned."""

    @property
    def what(self) -> str:
        names = {"policy": "the policy", "init": "the model", "reward": "the reward model"}
        return names.get(self.role) or self.role.removeprefix("models.")


def require_one_tokenizer(plan: StagePlan) -> None:
    """Policy, reward model and what is compared with them read the same tokens, as far as can be seen by now.

    Raises: UserError with the key of the one that was named by the user, or of the later one.
    """
    readers = list(_readers(plan))
    if len({reader.folder for reader in readers}) < 2:
        return
    # what the command line's own runs have is meant; what was named beside them is to fit
    first, *others = sorted(readers, key=lambda reader: reader.given)
    expected = _fingerprint(plan, first)
    for other in others:
        if _fingerprint(plan, other) != expected:
            raise UserError(
                f"{key_of(plan, other.role)} must have the tokenizer of {first.what} {str(first.folder)!r},"
                f" got {str(other.folder)!r} with another one"
            )


def _readers(plan: StagePlan) -> Iterator[_Reader]:
    for role, parent in plan.parents.items():
        if role in ("init", "policy", "reward") or role.startswith(("models.", "reward.")):
            folder = _tokenizer_folder(parent)
            if folder is not None:
                yield _Reader(role, folder, isinstance(parent, Artifact))


def _tokenizer_folder(parent: StagePlan | Artifact) -> Path | None:
    """Where the tokenizer of a run that may not be there yet can be read; None: it is not made yet."""
    if isinstance(parent, Artifact):
        return parent.path
    if state(parent) == "reused":
        return parent.path / "artifact"
    source = parent.parents.get("policy") or parent.parents.get("init")
    return None if source is None else _tokenizer_folder(source)


def _fingerprint(plan: StagePlan, reader: _Reader) -> str:
    try:
        return tokenizer_fingerprint(reader.folder)
    except UserError as error:
        raise UserError(f"{key_of(plan, reader.role)}={error}") from error
