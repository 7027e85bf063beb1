"""PPO's options: warm-up, refresh, average, KL and ratio limits, PPO-ptx."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy

from rlhf_lightning.batches import PPOBatch, SFTBatch
from rlhf_lightning.config import AdaptiveKLConfig, PTXConfig, ScheduleConfig
from rlhf_lightning.stages.ppo import PPOModule
from rlhf_lightning.stages.ppo_progress import Progress
from rlhf_lightning.stages.updates import MovingAverage
from rlhf_lightning.stages.watching import watched
from tests.stages.tiny_ppo import HP, batches, fit, module, weights
from tests.tiny import packed_text, prompt_batch, tiny_policy


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


def test_the_reference_is_refreshed_every_so_many_iterations_and_stands_still_between():
    """Every second of three: it is the policy after the second, not the first and not the third."""
    runs = [module(replace(HP, reference_refresh_every=2)) for _ in range(3)]
    for iterations, ppo in enumerate(runs, start=1):
        fit(ppo, batches(iterations))
    reference = runs[-1].reference.state_dict()
    policies = [ppo.policy.state_dict() for ppo in runs]
    same = [all(torch.equal(policy[k], v) for k, v in reference.items()) for policy in policies]
    assert same == [False, True, False]


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


def test_the_reward_of_an_iteration_has_the_coefficient_that_the_last_one_left():
    """Reward = score − β·KL, with β = 0.05 in the first iteration and 0.0508 in the second (as above)."""
    adaptive = AdaptiveKLConfig(enabled=True, target=0.01, horizon=100)
    hp = replace(HP, iterations=2, adaptive_kl=adaptive, missing_eos="keep")
    logged = fit(module(hp, reference=tiny_policy(9)))
    for seen, kl_coef in zip(logged, (0.05, 0.0508), strict=True):
        assert seen["ppo/kl_coef"] == pytest.approx(kl_coef)
        cost = seen["rollout/score"] - seen["rollout/reward"]
        assert cost / seen["rollout/kl_k1"] == pytest.approx(kl_coef, rel=1e-3)


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
    assert ppo.progress.iteration == 1 and ppo.progress.mean_kl == far[0]
    # one that was killed there goes no further
    again = module(ppo.hp, reference=tiny_policy(9))
    again.progress = ppo.progress
    assert fit(again) == [] and again.progress.iteration == 1


def test_the_limit_holds_the_mean_of_a_window_against_it():
    """KLs of 1, 9, 4, 3 and 8 nats and a limit of 5: alone 9 and 8 are above it, of pairs 9 and 4, 3 and 8."""
    kls = (1.0, 9.0, 4.0, 3.0, 8.0)
    for window, ends in (
        (1, [False, True, False, False, True]),
        (2, [False, False, True, False, True]),
    ):
        hp = replace(HP, stop_at_kl=5.0, stop_at_kl_window=window)
        progress, over = Progress(), []
        for kl in kls:
            progress.advance(hp, episodes=8, kl=kl)
            over.append(progress.is_over(hp))
        assert over == ends
        assert progress.mean_kl == pytest.approx(sum(kls[-window:]) / window)


def test_a_window_that_was_not_seen_whole_ends_nothing():
    hp = replace(HP, stop_at_kl=5.0, stop_at_kl_window=3)
    progress = Progress()
    for _ in range(2):
        progress.advance(hp, episodes=8, kl=9.0)
        progress = Progress.from_state(progress.state())  # the window is in the checkpoint
        assert not progress.is_over(hp)
    progress.advance(hp, episodes=8, kl=9.0)
    assert progress.is_over(hp) and progress.kls == [9.0, 9.0, 9.0]


def test_a_window_has_no_kl_of_a_policy_that_stood_still_or_to_an_earlier_reference():
    hp = replace(HP, stop_at_kl=5.0, stop_at_kl_window=2, critic_warmup_iterations=1)
    progress = Progress()
    for kl in (0.0, 9.0):
        progress.advance(hp, episodes=8, kl=kl)
    assert progress.kls == [9.0]
    progress.begin_from_new_reference(hp)
    assert progress.kls == [] and math.isnan(progress.mean_kl)
    for kl in (4.0, 9.0):
        progress.advance(hp, episodes=8, kl=kl)
    progress.begin_from_new_reference(hp)
    assert progress.is_over(hp)  # what ends a run ends it
    ppo = module(replace(HP, reference_refresh_every=2, stop_at_kl=1e3, stop_at_kl_window=9))
    fit(ppo, batches(3))
    assert len(ppo.progress.kls) == 1


def test_a_checkpoint_from_before_the_window_has_the_last_kl():
    for iteration, kls in ((3, [7.0]), (0, [])):
        state = Progress(iteration=iteration).state() | {"kl": 7.0}
        del state["kls"]
        assert Progress.from_state(state).kls == kls


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


def uneven_text() -> SFTBatch:
    """Four documents with 11, 7, 4 and 1 targets."""
    text = packed_text()
    for row, targets in enumerate((11, 7, 4, 1)):
        text.loss_mask[row, 1 + targets :] = False
    return text


def one_step(coef: float, micro_batch_size: int) -> tuple[PPOModule, dict[str, float]]:
    """One step of SGD with a rate of 1 on PPO's loss and the text's: weights move by minus the gradient."""
    sizes = {"minibatch_size": 8, "micro_batch_size": micro_batch_size}
    hp = replace(HP, iterations=1, epochs=1, grad_clip=1e9, ptx=PTXConfig(coef=coef), **sizes)
    ppo = module(hp, optimizer=partial(torch.optim.SGD, lr=1.0))
    prompts = batches(1)[0].prompts
    return ppo, fit(ppo, [PPOBatch(prompts, [uneven_text()] if coef else [])])[0]


@pytest.mark.parametrize("coef", [1.0, 3.0])
@pytest.mark.parametrize("rows", [1, 4])
def test_ptx_adds_the_gradient_of_the_mean_token_loss_times_its_coefficient(rows: int, coef: float):
    model, text = tiny_policy(), uneven_text()
    logits = model(input_ids=text.ids).logits[:, :-1].flatten(0, 1)
    targets = text.ids[:, 1:].masked_fill(~text.loss_mask[:, 1:], -100).flatten()
    loss = cross_entropy(logits, targets, ignore_index=-100)
    loss.backward()
    plain, (mixed, seen) = one_step(0.0, rows)[0], one_step(coef, rows)
    assert seen["ppo/ptx_loss"] == pytest.approx(loss.item(), rel=1e-5)
    both = zip(plain.policy.parameters(), mixed.policy.parameters(), strict=True)
    added = torch.cat([(a - b).detach().flatten() for a, b in both])
    expected = coef * torch.cat([p.grad.flatten() for p in model.parameters()])
    assert expected.norm() > 1
    torch.testing.assert_close(added, expected, atol=1e-5, rtol=1e-4)


def test_the_value_models_own_learning_rate():
    ppo = module(replace(HP, value_lr=0.5))
    groups = ppo.configure_optimizers().param_groups
    assert [g["lr"] for g in groups] == [1e-3, 0.5]


def test_the_learning_rates_fall_from_iteration_to_iteration():
    """Linear to 0 over 4 iterations: 1, ¾, ½ and ¼ of the rate, the value model's own rate alike."""
    linear = ScheduleConfig(name="linear", final_fraction=0.0)
    ppo = module(replace(HP, iterations=4, schedule=linear, value_lr=2e-3))
    rates = [seen["ppo/lr"] for seen in fit(ppo)]
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    (optimizer,) = ppo.trainer.optimizers
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.25e-3, 0.5e-3])


def test_one_norm_over_policy_and_value_model_is_clipped():
    """SGD: θ − 0.1·g with |g| = 0.01."""
    hp = replace(HP, iterations=1, epochs=1, minibatch_size=8, micro_batch_size=4, grad_clip=0.01)
    ppo = module(hp, optimizer=partial(torch.optim.SGD, lr=0.1))
    before = weights(ppo)
    assert fit(ppo)[0]["ppo/grad_norm"] > 0.01
    assert (weights(ppo) - before).norm() == pytest.approx(0.1 * 0.01, rel=1e-3)


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
