"""The four models of PPO, put together so that nothing is in memory twice.

Without adapters: policy, its frozen copy as reference, the reward model, and a value model that starts from it.
With adapters: one backbone. The reference is the policy with its adapter off; the value model is a second adapter with
a head; the reward model is a third one, frozen, where it was trained on the very weights that the policy starts from.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.config import PPOConfig
from rlhf_lightning.models.adapters import (
    FOLDER,
    REFERENCE,
    TRAINED,
    VALUE,
    AdapterView,
    TrunkScorer,
    adapter_state,
    add_adapter,
    freeze_adapter,
    load_adapter,
)
from rlhf_lightning.models.loading import compiled, frozen, scorer_on
from rlhf_lightning.runs.artifact import load_config
from rlhf_lightning.tasks.job import Job, add_trained_adapter
from rlhf_lightning.tasks.scorers import trained_scorer

Scorer = TypeVar("Scorer", PreTrainedModel, TrunkScorer)

_COMMIT = re.compile("[0-9a-f]{40}")
"""A branch or a tag may move."""


@dataclass
class PPOModels:
    """What `PPOModule` is made of."""

    policy: PreTrainedModel
    value: nn.Module | None
    reference: nn.Module
    learned: dict[str, nn.Module]
    """Role of a parent → its frozen scalar-head model."""


def ppo_models(
    job: Job, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, roles: Sequence[str]
) -> PPOModels:
    """All models, from the policy's weights and the reward models of `roles`; the first one starts the value model."""
    hp: PPOConfig = job.root.ppo
    separate = None
    if hp.value_kind == "separate":  # before adapters are put on the policy's backbone
        # a reward that is not learned has no backbone to begin from, and 0 is what is known of its scale
        separate = (
            _on_scale(trained_scorer(job, roles[0], tokenizer), job)
            if roles
            else scorer_on(policy, job.root.model)
        )
        add_trained_adapter(job, separate, hp.lora)
    if hp.lora is None:
        reference: nn.Module = frozen(compiled(copy.deepcopy(policy), job.root.model))
        learned: dict[str, nn.Module] = {
            r: frozen(trained_scorer(job, r, tokenizer)) for r in roles
        }
    else:
        add_trained_adapter(job, policy, hp.lora)
        reference = AdapterView(policy, _reference_adapter(job, policy))
        learned = {role: _learned(job, role, policy, tokenizer) for role in roles}
    if hp.value_kind == "shared":
        value: nn.Module | None = TrunkScorer(policy, TRAINED if hp.lora else None)
    elif hp.value_kind == "adapter":
        value = _value_adapter(job, policy, roles, learned)
    else:
        value = separate
    return PPOModels(policy, value, reference, learned)


def _reference_adapter(job: Job, policy: PreTrainedModel) -> str | None:
    """None: all adapters off. A reference that is refreshed needs numbers of its own."""
    hp: PPOConfig = job.root.ppo
    if not hp.reference_refresh_every or hp.lora is None:
        return None
    add_adapter(policy, hp.lora, REFERENCE, seed=0)
    freeze_adapter(policy, REFERENCE)
    return REFERENCE


def _learned(
    job: Job, role: str, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> nn.Module:
    """A reward model as an adapter on the policy's backbone where it was trained on these weights, else whole."""
    if not _same_backbone(job, role):
        job.say(f"{role} has another backbone than the policy: it is a model of its own in memory")
        return frozen(trained_scorer(job, role, tokenizer))
    return _on_backbone(job, role, policy, role.replace(".", "-")).requires_grad_(False)


def _on_backbone(job: Job, role: str, policy: PreTrainedModel, name: str) -> TrunkScorer:
    """The reward model of `role` as adapter `name` of the policy, frozen, and its head."""
    head = load_adapter(policy, name, job.parents[role].path / FOLDER)
    config = load_config(job.parents[role])
    bias, gain = config.get("reward_bias", 0.0), config.get("reward_gain", 1.0)
    return TrunkScorer(policy, name, head=head, bias=bias, gain=gain)


def _same_backbone(job: Job, role: str) -> bool:
    """Whether the adapter of `role` was trained on the weights that the policy starts from."""
    manifest, policy = job.parents[role].manifest, job.parents.get("policy")
    if manifest is None or not (job.parents[role].path / FOLDER).is_dir():
        return False
    trained_on = manifest["parents"].get("init")
    if policy is not None:
        return trained_on == policy.sha256
    # both begin with model.path's own weights
    own = _weights_of(job.run.identity["model"])
    return (
        trained_on is None and own is not None and own == _weights_of(manifest["config"]["model"])
    )


def _weights_of(model: Mapping[str, Any]) -> tuple[str, ...] | None:
    """What names a model's own weights for good, their files' sha256 or a commit of the hub, and their precision; None:
    nothing does.
    """
    if model.get("sha256") is not None:
        return model["sha256"], model["dtype"]
    if model["path"] is None or not _COMMIT.fullmatch(model["revision"] or ""):
        return None
    return model["path"], model["revision"], model["dtype"]


def _on_scale(value: Scorer, job: Job) -> Scorer:
    """A value model that begins as the reward model, on the scale that the score has its part on."""
    part, config = job.root.reward_source.learned, cast("Any", value.config)
    assert part is not None  # it has a role
    config.reward_gain = getattr(config, "reward_gain", 1.0) * part.weight
    return value


def _value_adapter(
    job: Job, policy: PreTrainedModel, roles: Sequence[str], learned: Mapping[str, nn.Module]
) -> TrunkScorer:
    """An adapter and a head of its own on the policy's backbone."""
    if roles and isinstance(learned[roles[0]], TrunkScorer):
        value = _on_scale(_on_backbone(job, roles[0], policy, VALUE), job)
        for parameter in adapter_state(policy, VALUE).values():
            parameter.requires_grad_(True)
    else:
        job.say("no reward model on the policy's backbone: the value adapter starts at V = 0")
        assert job.root.ppo.lora is not None  # ppo.value=adapter needs it
        add_adapter(policy, job.root.ppo.lora, VALUE, seed=job.seed("value adapter"))
        value = TrunkScorer(policy, VALUE)
    value.owns_adapter = True
    return value
