"""PPO on one backbone: adapters as policy, reference and value model, or a head on the policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rlhf_lightning.config import LoRAConfig, PPOConfig
from rlhf_lightning.errors import RunFailed
from rlhf_lightning.functional.scores import RunningMoments
from rlhf_lightning.models.adapters import (
    REFERENCE,
    TRAINED,
    VALUE,
    AdapterView,
    TrunkScorer,
    adapter_state,
    add_adapter,
    freeze_adapter,
)
from rlhf_lightning.stages.ppo import PPOModule
from rlhf_lightning.stages.ppo_losses import actor_losses, critic_loss
from rlhf_lightning.stages.rollout import to_experience
from tests.stages.tiny_ppo import HP, backward, batches, fit, module
from tests.tiny import tiny_policy

LORA = LoRAConfig(rank=2, alpha=4.0)


def adapted(hp: PPOConfig, **changes: Any) -> PPOModule:
    """One backbone: the reference is the policy with its adapter off, the value model a second adapter with a head."""
    policy = tiny_policy()
    add_adapter(policy, LORA, TRAINED, seed=0)
    value = None
    if hp.value_kind == "adapter":
        add_adapter(policy, LORA, VALUE, seed=1)
        value = TrunkScorer(policy, VALUE)
        value.owns_adapter = True
    if hp.value_kind == "shared":
        value = TrunkScorer(policy, TRAINED)
    reference = AdapterView(policy, None)
    return module(hp, policy=policy, value=value, reference=reference, **changes)


def test_with_adapters_the_reference_stays_what_the_policy_was():
    """At the first rollout the KL is 0 but for rounding; later it is not, and the weights below the adapters have not moved."""
    hp = replace(HP, lora=LORA, iterations=3)
    ppo = adapted(hp)
    before = {n: p.clone() for n, p in ppo.policy.named_parameters() if ".lora_" not in n}
    seen = fit(ppo)
    assert seen[0]["rollout/kl_k1"] == pytest.approx(0, abs=1e-5)
    assert seen[-1]["rollout/kl_k3"] > 1e-4
    for name, parameter in ppo.policy.named_parameters():
        if ".lora_" not in name:
            torch.testing.assert_close(parameter, before[name], rtol=0, atol=0)
    assert any(p.any() for p in adapter_state(ppo.policy, VALUE).values())


def test_a_shared_value_head_reads_the_policys_own_states_in_one_pass():
    hp = replace(HP, value="shared")
    policy = tiny_policy()
    value = TrunkScorer(policy, None, head=torch.full((1, 32), 0.1))
    ppo = module(hp, policy=policy, value=value)
    rollout = ppo.rollout(batches(1)[0].prompts, ppo.generator)
    experience, _ = to_experience(rollout, hp, kl_coef=0.05, moments=RunningMoments())
    passes: list[int] = []
    policy.model.register_forward_hook(lambda *_: passes.append(1))
    ppo.train()
    backward(ppo, experience, int(experience.response_mask.sum()))
    assert len(passes) == 1
    found = torch.cat([p.grad.flatten() for p in policy.parameters()])
    # the same two losses, each by a pass of its own
    ppo.zero_grad()
    tokens = int(experience.response_mask.sum())
    actor, _, _ = actor_losses(policy, experience, hp, tokens=tokens)
    critic, _ = critic_loss(value, experience, hp, tokens=tokens)
    (actor + critic).backward()
    expected = torch.cat([p.grad.flatten() for p in policy.parameters()])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_a_warming_up_shared_head_leaves_the_policy_alone():
    ppo = adapted(replace(HP, lora=LORA, value="shared", critic_warmup_iterations=1, iterations=2))
    fit(ppo, batches(1))
    assert not any(p.any() for n, p in adapter_state(ppo.policy, TRAINED).items() if "lora_B" in n)
    assert ppo.value.score.weight.any()


def test_a_checkpoint_with_adapters_holds_what_is_trained_and_nothing_frozen():
    ppo = adapted(replace(HP, lora=LORA))
    checkpoint: dict[str, Any] = {"state_dict": ppo.state_dict()}
    ppo.on_save_checkpoint(checkpoint)
    kept = set(checkpoint["state_dict"])
    assert kept == {n for n, p in ppo.named_parameters() if p.requires_grad}
    checkpoint["state_dict"].pop(min(kept))
    with pytest.raises(RunFailed, match="does not fit this run's model: policy"):
        ppo.on_load_checkpoint(checkpoint)


def test_a_refreshed_reference_becomes_the_policy_as_it_is():
    hp = replace(HP, lora=LORA, reference_refresh_every=1, iterations=1)
    policy = tiny_policy()
    for name in (TRAINED, REFERENCE, VALUE):
        add_adapter(policy, LORA, name, seed=0)
    freeze_adapter(policy, REFERENCE)
    value = TrunkScorer(policy, VALUE)
    value.owns_adapter = True
    ppo = module(hp, policy=policy, value=value, reference=AdapterView(policy, REFERENCE))
    fit(ppo)
    trained, reference = adapter_state(policy, TRAINED), adapter_state(policy, REFERENCE)
    assert any(p.any() for n, p in trained.items() if "lora_B" in n)
    for name, parameter in reference.items():
        torch.testing.assert_close(parameter, trained[name].detach(), rtol=0, atol=0)
