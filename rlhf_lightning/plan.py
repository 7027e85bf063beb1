"""Which runs a command consists of: each stage with its identity, its parents and its place on disk.

A plan is made before anything is loaded or written. The same plan answers `dry_run=true`, finds the parents of a
single stage, and shares SFT and reward between the jobs of a sweep: equal identity, equal directory, one run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from rlhf_lightning.config import STAGES, ModelConfig, RewardPartConfig, RootConfig, process_count
from rlhf_lightning.config.reward_source import role_of
from rlhf_lightning.errors import UserError
from rlhf_lightning.model_identity import model_identity, parts_identity, require_local_folder
from rlhf_lightning.runs import Artifact, resolve_artifact, run_hash, run_name, run_path
from rlhf_lightning.runs.artifact import load_config
from rlhf_lightning.runs.identity import FORMAT_VERSION, canonical_json, plain

NOT_IDENTITY = ("init", "model", "checkpoint_every")
"""Keys of a stage's node that do not say what it computes: parents count by what they are, the model by itself."""
_SOURCE_LATER = {"keep_repeats": False, "split": None}
"""Options of a source, and the default with which it has the records of runs from before the option."""


@dataclass(frozen=True)
class StagePlan:
    """One stage run that a command needs."""

    task: str
    round: int
    root: RootConfig
    """The settings as this stage sees them (`reward.model` put in its place)."""
    identity: dict[str, Any]
    parents: dict[str, StagePlan | Artifact] = field(default_factory=dict)
    """Role (base, policy, init, reward, ...) → the run or artifact that plays it."""
    folder: Path | None = None
    """Given by `run_dir`; None: the place that the identity determines."""
    member: int = 0
    """Which of an ensemble's reward models; 0 is the first, and the only one without an ensemble."""

    @property
    def name(self) -> str:
        return run_name(self.root.model.name, self.root.mix.name, self.root.seed)

    @property
    def label(self) -> str:
        """How messages call it: `ppo`, `ppo of round 2`, `sft (small)` for the reward model's own."""
        size = self.root.reward.model
        other = size is not None and self.root.model is size and self.task != "reward"
        task = member_name(self.task, self.member)
        name = f"{task} ({self.root.model.name})" if other else task
        return name if self.round == 1 else f"{name} of round {self.round}"

    @property
    def path(self) -> Path:
        return self.folder or run_path(self.root.outputs, self.task, self.name, self.identity)


P = ParamSpec("P")
Plan = Callable[Concatenate["Planner", P], StagePlan]


def once(plan: Plan[P]) -> Plan[P]:
    """A stage is planned once, however many others start from it: rounds and members would multiply."""

    @wraps(plan)
    def planned(self: Planner, *args: P.args, **kwargs: P.kwargs) -> StagePlan:
        key = canonical_json([plan.__name__, args, kwargs])
        if key not in self._requests:
            self._requests[key] = plan(self, *args, **kwargs)
        return self._requests[key]

    return planned


class Planner:
    """Plans stages of one command line; equal requests give the same plan."""

    def __init__(
        self, root: RootConfig, data_identity: Mapping[str, Any], folder: Path | None = None
    ) -> None:
        if root.reward.model == root.model:  # the same models need no runs of their own
            root = replace(root, reward=replace(root.reward, model=None))
        self.root, self.data_identity = root, dict(data_identity)
        self.folder = folder
        """Where all stages of a pipeline lie, if the user said so."""
        self._made: dict[tuple[str, int, str, int], StagePlan] = {}
        self._requests: dict[str, StagePlan] = {}
        self._artifacts: dict[tuple[str, str], Artifact] = {}

    def pipeline(self) -> list[StagePlan]:
        """All stages in the order in which they can run."""
        last = self.evaluate(self.root.pipeline.rounds)
        ordered: list[StagePlan] = []

        def visit(plan: StagePlan | Artifact) -> None:
            if isinstance(plan, StagePlan) and plan not in ordered:
                for parent in plan.parents.values():
                    visit(parent)
                ordered.append(plan)

        visit(last)
        return ordered

    def stage(self, task: str) -> StagePlan:
        """The plan of `task=<stage>`: the first round's, with the place that `run_dir` gives this stage alone."""
        plan = getattr(self, task)()
        return replace(plan, folder=Path(self.root.run_dir)) if self.root.run_dir else plan

    @once
    def pretrain(self, model: ModelConfig | None = None) -> StagePlan:
        init = self.root.pretrain.init.policy
        stages = ("pretrain", "sft", "ppo")
        parents = self._given("init", init, "pretrain.init.policy", stages, model)
        return self._plan("pretrain", parents, model=model)

    @once
    def sft(self, model: ModelConfig | None = None) -> StagePlan:
        init = self.root.sft.init.policy
        stages = ("pretrain", "sft", "ppo")
        parents = self._given("init", init, "sft.init.policy", stages, model)
        if init is None and (model or self.root.model).path is None:
            parents["init"] = self.pretrain(model)
        return self._plan("sft", parents, model=model)

    @once
    def reward(self, round_: int = 1, member: int | None = None) -> StagePlan:
        """One reward model; of an ensemble, that of `member` (None: the one that the settings name)."""
        member = self.root.reward_source.member if member is None else member
        hp, init = self.root.reward, self.root.reward.init.policy
        sampled = hp.completions == "policy"
        # a reward model has no completions to sample
        stages = ("pretrain", "sft", "ppo", *(() if sampled else ("reward",)))
        parents = self._given("init", init, "reward.init.policy", stages, hp.model)
        if init == "none" and sampled:
            raise UserError(
                "reward.completions must be speakers where reward.init.policy is none, got 'policy'"
            )
        if round_ > 1:
            parents["init"] = self.reward(round_ - 1, member)
        elif init is None:
            parents["init"] = self.sft(hp.model)
        if member > 0:  # it learns from what the first one has collected
            parents["comparisons"] = self.reward(round_, 0)
        elif sampled:
            given = parents.get("init") if init is not None else self.sft()
            current = self.ppo(round_ - 1) if round_ > 1 else given
            assert current is not None
            parents["policy"] = current
        return self._plan("reward", parents, model=hp.model, round_=round_, member=member)

    @once
    def ppo(self, round_: int = 1) -> StagePlan:
        init = self.root.ppo.init
        policy = self._given("policy", init.policy, "ppo.init.policy", ("pretrain", "sft", "ppo"))
        if round_ > 1:
            policy["policy"] = self.ppo(round_ - 1)
        elif init.policy is None:
            policy["policy"] = self.sft()
        rewards = self._rewards(init.reward, "ppo.init.reward", round_)
        return self._plan("ppo", policy | rewards, round_=round_)

    def evaluate(self, rounds: int | None = None) -> StagePlan:
        hp, rounds = self.root.evaluate, rounds or self.root.pipeline.rounds
        parents: dict[str, StagePlan | Artifact] = {}
        for name, given in hp.models.items():
            key = f"evaluate.models.{name}"
            parents |= self._given(f"models.{name}", given, key, ("pretrain", "sft", "ppo"))
            if given is None:
                found = self._default_model(name, key, rounds)
                if found is not None:
                    parents[f"models.{name}"] = found
        # null: the one that PPO was trained against
        key = "evaluate.reward" if hp.reward is not None else "ppo.init.reward"
        given = self.root.ppo.init.reward if hp.reward is None else hp.reward
        return self._plan("evaluate", parents | self._rewards(given, key, rounds))

    def _rewards(self, given: str | None, key: str, round_: int) -> dict[str, StagePlan | Artifact]:
        """The models of the score's learned part; none where it has no such part."""
        if given == "none":
            raise UserError(f"{key} must be a run, an artifact or a model folder, got 'none'")
        found = self._given("reward", given, key, ("reward",), self.root.reward.model)
        members = range(self.root.reward_source.members)
        return found or {role_of(i): self.reward(round_, i) for i in members}

    def generate(self) -> StagePlan:
        """Not a run: its place is the file that it writes."""
        init = self.root.generate.init
        key = "generate.init.policy"
        parents = self._given("policy", init.policy, key, ("pretrain", "sft", "ppo"))
        if init.policy is None and self.root.model.path is None:
            parents["policy"] = self.ppo(self.root.pipeline.rounds)
        judge, key = self.root.reward.model, "generate.init.reward"
        parents |= self._given("reward", init.reward, key, ("reward",), judge)
        place = Path(self.root.output or "/dev/stdout")
        return replace(self._plan("generate", parents), folder=place)

    def data(self) -> StagePlan:
        """Not a run: a page about the mix."""
        return self._plan("data", {})

    def _default_model(self, name: str, key: str, rounds: int) -> StagePlan | Artifact | None:
        if name == "base":
            # what SFT started from; None: the model's own weights
            return self.sft().parents.get("init")
        if name == "sft":
            return self.sft()
        if name == "ppo":
            return self.ppo(rounds)
        raise UserError(f"{key} must be a run, an artifact or a model folder, got null")

    def _given(
        self,
        role: str,
        path: str | None,
        key: str,
        stages: tuple[str, ...],
        model: ModelConfig | None = None,
    ) -> dict[str, StagePlan | Artifact]:
        """The artifact that the user named; `model` is what it is loaded as, None being the command's own."""
        if path is None or path == "none":
            return {}
        if (path, key) not in self._artifacts:  # all of its weights are read
            self._artifacts[path, key] = resolve_artifact(path, stages=stages, key=key)
        artifact = self._artifacts[path, key]
        model = model or self.root.model
        config, ours = load_config(artifact), model.context_length
        text = config.get("text_config", config)
        longest = text.get("max_position_embeddings", text.get("n_positions"))
        if longest is not None and ours > longest:
            own = "reward.model" if model is self.root.reward.model else "model"
            raise UserError(
                f"{own}.context_length must be <= {longest}, the context of {key}={path}, got {ours}"
            )
        return {role: artifact}

    def _plan(
        self,
        task: str,
        parents: dict[str, StagePlan | Artifact],
        *,
        model: ModelConfig | None = None,
        round_: int = 1,
        member: int = 0,
    ) -> StagePlan:
        root = self.root if model is None else replace(self.root, model=model)
        if root.reward_source.member != member:  # a saved config runs this member again
            root = replace(root, reward_source=replace(root.reward_source, member=member))
        # not by name: reward.model may be another variant of the same size
        key = (task, round_, canonical_json(root.model), member)
        if key not in self._made:
            identity = self._identity(task, root, parents, round_)
            identity |= {"member": member} if member else {}
            folder = None
            if self.folder is not None:
                folder = self.folder / stage_name(task, round_, member)
                if model is not None and task != "reward":
                    folder = folder.with_name(f"{folder.name}-{model.name}")
            self._made[key] = StagePlan(task, round_, root, identity, parents, folder, member)
        return self._made[key]

    def _identity(
        self,
        task: str,
        root: RootConfig,
        parents: Mapping[str, StagePlan | Artifact],
        round_: int,
    ) -> dict[str, Any]:
        node = {k: v for k, v in plain(getattr(root, task)).items() if k not in NOT_IDENTITY}
        if task == "evaluate":
            node = {k: v for k, v in node.items() if k not in ("models", "reward", "known")}
            known = parts_identity(root.evaluate.known, "evaluate.known")
            node |= {"known": known} if known else {}
            own = sorted(n for n in root.evaluate.models if f"models.{n}" not in parents)
            node |= {"own_weights": own} if own else {}
        if task == "ppo" and node["stop_at_kl_window"] == 1:
            node.pop("stop_at_kl_window")  # runs from before it end alike
        if task == "reward":
            ranks = parts_identity(root.reward.rank_by, "reward.rank_by")
            node |= {"rank_by": ranks}
        mix = plain(root.mix)
        mix.pop("root")  # a place, like a source's path
        for source in mix["sources"].values():
            for option, default in _SOURCE_LATER.items():
                if source[option] == default:
                    source.pop(option)
            if source["path"] is not None:  # the file's sha256 counts, not its place
                source["path"] = Path(source["path"]).name
            if source["hub"] is not None and Path(source["hub"]).is_dir():  # likewise its rows'
                source["hub"] = Path(source["hub"]).name
        identity = {
            "format_version": FORMAT_VERSION,
            task: node,
            "model": model_identity(root.model),
            "mix": mix,
            "data": self.data_identity,
            "seed": root.seed,
            "precision": (root.trainer or {}).get("precision", "32-true"),
            "world_size": process_count(root.trainer),
            "parents": {role: parent_hash(parent) for role, parent in sorted(parents.items())},
        }
        callbacks = _switched_on(root.callbacks)
        if callbacks and task in STAGES:  # one may end the training
            identity["callbacks"] = callbacks
        sampled = task == "reward" and root.reward.completions == "policy"
        if task == "evaluate" or sampled:  # these choose their prompts by PPO's limit
            identity["max_prompt_tokens"] = root.ppo.max_prompt_tokens
        if task in ("ppo", "evaluate"):
            if root.reward.model is not None and isinstance(parents.get("reward"), Artifact):
                # one that is planned says how it is loaded
                identity["reward_model"] = model_identity(root.reward.model)
            parts = root.reward_source.parts
            if parts != {"learned": RewardPartConfig(kind="learned")}:  # then the parent says it
                identity["reward_source"] = parts_identity(parts, "reward_source.parts")
        return identity | ({"round": round_} if round_ > 1 else {})


def _switched_on(nodes: Mapping[str, Any] | None) -> dict[str, Any]:
    """The nodes of a group that are not switched off."""
    return {name: node for name, node in (nodes or {}).items() if node is not None}


def require_model_folder(model: ModelConfig, key: str) -> None:
    """Raises: UserError if `model.path` is written as a place on this machine and no model is there."""
    if model.path is not None:
        require_local_folder(model.path, key)


def parent_hash(parent: StagePlan | Artifact) -> str:
    """What a parent counts as in an identity: its run's hash, or the sha256 of an artifact from outside."""
    return run_hash(parent.identity) if isinstance(parent, StagePlan) else parent.sha256


def stage_name(task: str, round_: int, member: int = 0) -> str:
    """Name of a stage inside a pipeline's directory."""
    if task in ("pretrain", "evaluate"):
        return task
    return f"round-{round_}/{member_name(task, member)}"


def member_name(task: str, member: int) -> str:
    """reward, reward-2, reward-3, ..."""
    return f"{task}-{member + 1}" if member else task
