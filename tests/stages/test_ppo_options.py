"""PPO's options: warm-up, refresh, average, KL and ratio limits, PPO-ptx."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from rlhf_lightning.config import AdaptiveKLConfig, PTXConfig
from rlhf_lightning.stages.updates import MovingAverage
from rlhf_lightning.stages.watching import watched
from tests.stages.tiny_ppo import HP, batches, fit, module, weights
from tests.tiny import prompt_batch, tiny_policy


def test_critic_warmup_leaves_the_policy_alone_and_moves_the_value_model():
    adaptive = AdaptiveKLConfig(enabled=True, horizon=100)
    ppo = module(replace(HP, iterations=2, critic_warmup_iterations=1, adaptive_kl=adaptive))
    policy, value = copy.deepcopy(ppo.policy.state_dict()), copy.deepcopy(ppo.value.state_dict())
    fit(ppo, batches(1, texts=HP.minibatches))
    assert (
        ppo.progress.kl_coef == HP.kl_coef
    )  # a KL of 0 says nothing where the policy stands still
    assert all(torch.equal(policy[k], v) for k, v in ppo.policy.state_dict().items())
    assert not torch.equal(value["score.weight"], ppo.value.score.weight)


def test_reference_refresh_copies_the_policy():
    ppo = module(replace(HP, iterations=2, reference_refresh_every=2))
    fit(ppo)
    assert all(
        torch.equal(ppo.policy.state_dict()[k], v) for k, v in ppo.reference.state_dict().items()
    )


def test_ema_is_the_running_average_of_the_policy():
    """One iteration: average = d·start + (1 − d)·end."""
    ppo = module(replace(HP, iterations=1, ema_decay=0.75))
    start = [p.detach().clone() for p in ppo.policy.parameters()]
    fit(ppo)
    for before, after, average in zip(
        start, ppo.policy.parameters(), ppo.ema.parameters(), strict=True
    ):
        torch.testing.assert_close(average, 0.75 * before + 0.25 * after.detach())
    ppo.export_average()
    for exported, average in zip(ppo.policy.parameters(), ppo.ema.parameters(), strict=True):
        torch.testing.assert_close(exported.detach(), average, rtol=0, atol=0)


def test_adaptive_kl_raises_the_coefficient_where_kl_is_above_target():
    """e = clip(KL/target − 1, ±0.2) = 0.2 after a policy that is far away; β = 0.05·(1 + 0.2·8/100) = 0.0508."""
    hp = replace(
        HP, iterations=1, adaptive_kl=AdaptiveKLConfig(enabled=True, target=0.01, horizon=100)
    )
    ppo = module(hp, reference=tiny_policy(9))
    fit(ppo)
    assert ppo.progress.kl_coef == pytest.approx(0.0508)


def test_target_kl_stops_the_epochs_early():
    ppo = module(replace(HP, iterations=1, epochs=4, target_kl=1e-9))
    seen = fit(ppo)[0]
    assert seen["ppo/early_stops"] == 1 and seen["ppo/minibatches"] == 2  # the first has ratio one


def test_a_run_ends_after_the_iteration_whose_kl_is_above_the_limit():
    """A policy that is not its reference: the KL is some nats from the first iteration on."""
    hp = replace(HP, iterations=3)
    far = [s["rollout/kl_k1"] for s in fit(module(hp, reference=tiny_policy(9))) if "ppo/lr" in s]
    assert len(far) == 3 and min(far) > 0.1
    ppo = module(replace(hp, stop_at_kl=0.1), reference=tiny_policy(9))
    assert [s["rollout/kl_k1"] for s in fit(ppo) if "ppo/lr" in s] == far[:1]
    assert ppo.progress.iteration == 1 and ppo.progress.kl == far[0]
    # one that was killed there goes no further
    again = module(ppo.hp, reference=tiny_policy(9))
    again.progress = ppo.progress
    assert fit(again) == [] and again.progress.iteration == 1


def test_a_limit_that_is_not_reached_changes_nothing():
    seen = [fit(module(replace(HP, iterations=2, stop_at_kl=limit))) for limit in (None, 1e3)]
    assert [s["ppo/policy_loss"] for s in seen[0]] == [s["ppo/policy_loss"] for s in seen[1]]


def test_a_ratio_spike_skips_the_minibatch_and_counts_it():
    hp = replace(HP, iterations=1, ptx=PTXConfig(coef=1.0))
    hp.ratio_spike = 1e-6  # refused in a config: every minibatch is one
    ppo = module(hp)
    before = weights(ppo)
    ppo.minibatches._text_backward = None  # text is not computed for a step that is not taken
    seen = fit(ppo, batches(1, texts=HP.minibatches))[0]
    assert seen["ppo/skipped_minibatches"] == 4  # 2 epochs × 2 minibatches
    assert torch.equal(before, weights(ppo))
    assert "ppo/grad_norm" not in seen and "ppo/ptx_loss" not in seen


def test_ptx_adds_the_text_loss_times_its_coefficient():
    plain, mixed = module(HP), module(replace(HP, ptx=PTXConfig(coef=1.0)))
    fit(plain)
    seen = fit(mixed, batches(3, texts=HP.minibatches))
    assert seen[0]["ppo/ptx_loss"] > 0
    assert not torch.equal(weights(plain), weights(mixed))


def test_the_value_models_own_learning_rate():
    ppo = module(replace(HP, value_lr=0.5))
    groups = ppo.configure_optimizers().param_groups
    assert [g["lr"] for g in groups] == [1e-3, 0.5]


def test_an_average_of_weights_in_half_precision_is_kept_in_fp32_whatever_an_engine_casts():
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    average = MovingAverage(0.992)
    average.begin([weight])
    average.to(torch.bfloat16)  # as DeepSpeed does with the whole module
    weight.data += 0.25
    for _ in range(4):
        average.update([weight])
    (number,) = average.numbers
    torch.testing.assert_close(number.data, torch.full((4,), 1.25 - 0.25 * 0.992**4))
    average.copy_to([weight])
    assert weight.dtype == torch.bfloat16


def test_a_validation_has_one_response_a_prompt_whatever_the_samples_of_training():
    hp = replace(HP, samples_per_prompt=4)
    ppo = module(hp)
    prompts = prompt_batch([3, 5, 2, 6, 4, 4])
    rollout = ppo.rollout(prompts, torch.Generator().manual_seed(0))
    args = {"kl_coef": 0.1, "moments": ppo.progress.moments, "gold": None}
    metrics, rows = watched(prompts, rollout, hp, ppo.tokenizer, **args)
    assert metrics["val/score"] == pytest.approx(rollout.scores.mean().item())
    assert len(rows[0]["token_advantage"]) == len(rows[0]["tokens"])
