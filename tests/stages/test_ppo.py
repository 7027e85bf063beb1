"""The PPO module on tiny random models: invariants, options, refusal of broken numbers."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.batches import Experience, PPOBatch
from rlhf_lightning.config import (
    AdaptiveKLConfig,
    LoRAConfig,
    PPOConfig,
    PTXConfig,
    ScheduleConfig,
)
from rlhf_lightning.errors import RunFailed
from rlhf_lightning.functional.losses import policy_loss, value_loss
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
from rlhf_lightning.rewards.text import TextReward
from rlhf_lightning.stages.ppo import PPOModule
from rlhf_lightning.stages.ppo_losses import actor_losses, check_ratio, critic_loss, ratio_error
from rlhf_lightning.stages.rollout import micro_batches, shuffled_minibatches, to_experience
from tests import training
from tests.tiny import VOCAB, packed_text, prompt_batch, tiny_policy, tiny_scorer

HP = PPOConfig(
    iterations=3,
    episodes_per_iteration=8,
    rollout_batch_size=8,
    epochs=2,
    minibatch_size=4,
    micro_batch_size=4,
    max_response_tokens=10,
    schedule=ScheduleConfig(name="constant", final_fraction=1.0),
)


def tokenizer() -> PreTrainedTokenizerFast:
    vocab = {f"t{i}": i for i in range(VOCAB)}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="t3"))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="t0", bos_token="t1", eos_token="t2", unk_token="t3"
    )


def reward() -> TextReward:
    return TextReward(lambda prompt, response: response.count("t7") - 0.1 * len(response.split()))


def module(hp: PPOConfig = HP, **changes: Any) -> PPOModule:
    arguments: dict[str, Any] = {
        "policy": tiny_policy(),
        "value": tiny_scorer(),
        "reference": tiny_policy(),
        "reward": reward(),
        "tokenizer": tokenizer(),
        "optimizer": partial(torch.optim.Adam, lr=1e-3, eps=1e-5),
        "seed": 0,
    }
    return PPOModule(hp, **(arguments | changes))


def batches(count: int, *, text: bool = False) -> list[PPOBatch]:
    return [
        PPOBatch(prompt_batch([3, 5, 2, 6, 4, 4, 7, 1], seed=i), packed_text() if text else None)
        for i in range(count)
    ]


def fit(ppo: PPOModule, data: list[PPOBatch] | None = None) -> list[dict[str, float]]:
    return training.fit(ppo, batches(ppo.hp.iterations) if data is None else data)


def weights(ppo: PPOModule) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in ppo.parameters() if p.requires_grad])


def backward(ppo: PPOModule, micro: Experience, tokens: int) -> torch.Tensor:
    """The whole loss of a micro-batch, whose gradient is added to the module's."""
    losses: list[torch.Tensor] = []

    def keep(loss: torch.Tensor) -> None:
        losses.append(loss.detach())
        loss.backward()

    ppo.minibatches.manual_backward = keep
    ppo.minibatches.backward(micro, tokens, ppo.progress, first=True)
    return torch.stack(losses).sum()


def test_every_documented_scalar_is_logged_and_finite():
    seen = fit(module())[0]
    expected = {
        f"rollout/{n}"
        for n in "score score_std reward kl_k1 kl_k3 response_tokens eos_rate entropy".split()
    }
    expected |= {
        f"ppo/{n}"
        for n in "policy_loss value_loss clip_fraction approx_kl ratio_max explained_variance grad_norm kl_coef lr".split()
    }
    expected |= {f"time/{n}" for n in "rollout_s update_s tokens_per_s episodes_per_s".split()}
    assert expected <= set(seen)
    assert all(torch.isfinite(torch.tensor(seen[name])) for name in expected)


def test_kl_is_zero_and_the_ratio_is_one_before_the_first_update():
    first = fit(module(replace(HP, iterations=1, epochs=1, minibatch_size=8, micro_batch_size=8)))[
        0
    ]
    assert abs(first["rollout/kl_k1"]) < 1e-4
    assert abs(first["ppo/ratio_max"] - 1) < 1e-4


@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_never_change_the_gradient(size):
    """Accumulating 8 × 1 equals 1 × 8: losses are normalised by the minibatch's tokens."""
    ppo = module(replace(HP, minibatch_size=8, micro_batch_size=8))
    rollout = ppo.rollout(batches(1)[0].prompts, ppo.generator)
    experience, _ = to_experience(rollout, HP, kl_coef=0.05, moments=RunningMoments())
    tokens = int(experience.response_mask.sum())

    def gradient(rows: int) -> torch.Tensor:
        ppo.zero_grad()
        for micro in micro_batches(experience, rows):
            backward(ppo, micro, tokens)
        return torch.cat([p.grad.flatten() for p in ppo.parameters() if p.grad is not None])

    torch.testing.assert_close(gradient(size), gradient(8), atol=1e-6, rtol=1e-4)


def test_left_padding_and_padding_contents_never_change_the_losses():
    ppo = module()
    plain = batches(1)[0].prompts
    rollout = ppo.rollout(plain, torch.Generator().manual_seed(5))
    experience, _ = to_experience(rollout, HP, kl_coef=0.05, moments=RunningMoments())
    wider = replace(
        experience,
        prompt_ids=torch.nn.functional.pad(experience.prompt_ids, (4, 0), value=9),
        prompt_mask=torch.nn.functional.pad(experience.prompt_mask, (4, 0)),
        response_ids=experience.response_ids.masked_fill(~experience.response_mask, 11),
        advantages=experience.advantages.masked_fill(~experience.response_mask, float("nan")),
        returns=experience.returns.masked_fill(~experience.response_mask, float("nan")),
    )
    tokens = int(experience.response_mask.sum())
    a, b = backward(ppo, experience, tokens), backward(ppo, wider, tokens)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_clipped_policy_loss_plus_the_weighted_value_loss():
    ppo = module()
    rollout = ppo.rollout(batches(1)[0].prompts, ppo.generator)
    experience, _ = to_experience(rollout, HP, kl_coef=0.05, moments=RunningMoments())
    tokens = int(experience.response_mask.sum())
    loss = backward(ppo, experience, tokens)
    mask = experience.response_mask
    expected, _ = policy_loss(
        experience.logprobs,
        experience.logprobs,
        experience.advantages,
        mask,
        clip_range=0.2,
        normalizer=tokens,
    )
    critic, _ = value_loss(
        experience.values,
        experience.values,
        experience.returns,
        mask,
        clip_range=0.2,
        normalizer=tokens,
    )
    torch.testing.assert_close(loss, expected + 0.1 * critic, atol=1e-5, rtol=1e-5)


def test_a_ratio_that_is_not_one_stops_the_run():
    ppo = module()
    ppo.sampling.temperature = 0.5  # sampling no longer agrees with the update
    with pytest.raises(RunFailed, match="policy ratio differs from 1"):
        fit(ppo)


@pytest.mark.parametrize(
    ("dtype", "moved", "fails"),
    [
        (torch.float32, (9e-5, 0.0, 0.0, 0.0), False),
        (torch.float32, (2e-4, 0.0, 0.0, 0.0), True),
        (torch.bfloat16, (0.3, 0.0, 0.0, 0.0), False),  # one token's rounding
        (torch.bfloat16, (0.3, -0.3, 0.3, -0.3), True),
        (torch.bfloat16, (float("nan"), 0.0, 0.0, 0.0), True),
    ],
)
def test_the_ratio_may_be_off_by_rounding_only(dtype: torch.dtype, moved: tuple, fails: bool):
    zeros, real = torch.zeros(1, 5), torch.tensor([[True, True, True, True, False]])
    micro: Any = SimpleNamespace(logprobs=zeros, response_mask=real)
    logprobs = torch.tensor([[*moved, 7.0]])  # the last one is padding
    error = ratio_error(logprobs, micro, dtype=dtype, tokens=4).item()
    with pytest.raises(RunFailed, match="differs from 1") if fails else nullcontext():
        check_ratio(error, dtype=dtype, allowed=None, where="here")


def test_a_score_that_is_not_finite_stops_the_run_before_any_update():
    ppo = module(reward=TextReward(lambda prompt, response: float("nan")))
    before = weights(ppo)
    with pytest.raises(RunFailed, match="iteration 0: the score is nan"):
        fit(ppo)
    assert torch.equal(before, weights(ppo))


def test_critic_warmup_leaves_the_policy_alone_and_moves_the_value_model():
    ppo = module(replace(HP, iterations=1, critic_warmup_iterations=1))
    policy, value = copy.deepcopy(ppo.policy.state_dict()), copy.deepcopy(ppo.value.state_dict())
    fit(ppo)
    assert all(torch.equal(policy[k], v) for k, v in ppo.policy.state_dict().items())
    assert not torch.equal(value["score.weight"], ppo.value.score.weight)


def test_reference_and_reward_never_move_and_are_not_in_the_state():
    ppo = module(reward=tiny_reward())
    reference = copy.deepcopy(ppo.reference.state_dict())
    fit(ppo)
    assert all(torch.equal(reference[k], v) for k, v in ppo.reference.state_dict().items())
    assert all(name.startswith(("policy.", "value.")) for name in ppo.state_dict())


def tiny_reward():
    from rlhf_lightning.rewards.learned import LearnedReward

    return LearnedReward(tiny_scorer(3).eval())


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


def test_a_ratio_spike_skips_the_minibatch_and_counts_it():
    ppo = module(replace(HP, iterations=1, ratio_spike=1e-6))
    before = weights(ppo)
    seen = fit(ppo)[0]
    assert seen["ppo/skipped_minibatches"] == 4  # 2 epochs × 2 minibatches
    assert torch.equal(before, weights(ppo))


def test_ptx_adds_the_text_loss_times_its_coefficient():
    plain, mixed = module(HP), module(replace(HP, ptx=PTXConfig(coef=1.0)))
    fit(plain)
    seen = fit(mixed, batches(3, text=True))
    assert seen[0]["ppo/ptx_loss"] > 0
    assert not torch.equal(weights(plain), weights(mixed))


def test_the_value_models_own_learning_rate():
    ppo = module(replace(HP, value_lr=0.5))
    groups = ppo.configure_optimizers().param_groups
    assert [g["lr"] for g in groups] == [1e-3, 0.5]


def gain(iterations: int, episodes: int, seed: int, *, lr: float, ends: int) -> float:
    """By how much the mean score of the last `ends` iterations is above that of the first ones."""
    sizes = {"episodes_per_iteration": episodes, "rollout_batch_size": episodes}
    minibatches = {"minibatch_size": 16, "micro_batch_size": 16}
    hp = replace(HP, iterations=iterations, kl_coef=0.01, **sizes, **minibatches)
    prompts = (prompt_batch([4] * episodes, seed=100 * seed + i) for i in range(iterations))
    optimizer = partial(torch.optim.Adam, lr=lr, eps=1e-5)
    seen = fit(module(hp, seed=seed, optimizer=optimizer), [PPOBatch(p) for p in prompts])
    scores = [s["rollout/score"] for s in seen if "rollout/score" in s]
    assert len(scores) == iterations
    return sum(scores[-ends:]) / ends - sum(scores[:ends]) / ends


def test_ppo_raises_a_known_reward_a_little() -> None:
    """Six seeds gain 0.88 to 1.6; without learning (lr = 1e-9) none gains more than 0.1."""
    assert gain(8, 64, 0, lr=1e-2, ends=2) > 0.4


@pytest.mark.slow
def test_ppo_raises_a_known_reward() -> None:
    """Thirty iterations on 'say t7, be short': every one of four seeds gains more than 0.5."""
    for seed in range(4):
        assert gain(30, 32, seed, lr=1e-3, ends=5) > 0.5


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
    ppo = adapted(replace(HP, lora=LORA, value="shared", critic_warmup_iterations=1, iterations=1))
    fit(ppo)
    assert not any(p.any() for n, p in adapter_state(ppo.policy, TRAINED).items() if "lora_B" in n)
    assert ppo.value.score.weight.any()


def test_the_spread_of_scores_is_told_over_all_samples_and_within_prompts():
    hp = replace(HP, advantage="rloo", samples_per_prompt=4, episodes_per_iteration=8)
    ppo = module(hp, value=None)
    rollout = ppo.rollout(prompt_batch([4] * 8), ppo.generator)
    rollout = replace(rollout, scores=torch.tensor([0.0, 2, 0, 2, 5, 5, 5, 5]))
    _, told = to_experience(rollout, hp, kl_coef=0.05, moments=RunningMoments())
    # all: two are 3, two 1, four 2 away from the mean; within a prompt: four 1 away, four none
    assert told["rollout/score_std"] == pytest.approx(math.sqrt((16 + 18 + 2) / 8))
    assert told["rollout/score_std_within_prompt"] == pytest.approx(math.sqrt(4 / 3 / 2))


def test_leave_one_out_needs_no_value_model_and_samples_each_prompt_k_times():
    hp = replace(HP, advantage="rloo", samples_per_prompt=4, episodes_per_iteration=8, iterations=2)
    ppo = module(hp, value=None)
    data = [PPOBatch(prompt_batch([3, 5], seed=i)) for i in range(2)]
    seen = fit(ppo, data)
    assert ppo.progress.episodes == 16
    assert "ppo/value_loss" not in seen[0]
    assert all(isinstance(v, float) for v in seen[0].values())


def leave_one_out(prompts: list[int], **changes: Any) -> tuple[PPOModule, Experience]:
    """A module for 4 samples of each prompt, and its first rollout."""
    changes |= {"episodes_per_iteration": 4 * len(prompts), "minibatch_size": 4}
    hp = replace(HP, advantage="rloo", samples_per_prompt=4, entropy_coef=0.1, **changes)
    ppo = module(hp, value=None)
    rollout = ppo.rollout(prompt_batch(prompts), ppo.generator, samples=4)
    return ppo, to_experience(rollout, hp, kl_coef=0.05, moments=RunningMoments())[0]


@pytest.mark.parametrize("rows", [4, 8, 12])
def test_an_update_that_computes_a_prompt_once_has_the_same_loss_and_gradient(rows: int) -> None:
    found = {}
    for share in (False, True):
        ppo, experience = leave_one_out([3, 7, 5], share_prompt=share)
        tokens, loss = int(experience.response_mask.sum()), torch.zeros(())
        for micro in micro_batches(experience, rows, group_size=4 if share else 1):
            loss += backward(ppo, micro, tokens)
        gradient = [p.grad.flatten() for p in ppo.policy.parameters() if p.grad is not None]
        found[share] = loss, torch.cat(gradient)
    torch.testing.assert_close(found[True][0], found[False][0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found[True][1], found[False][1], atol=1e-6, rtol=1e-4)
    assert found[True][1].abs().max() > 1e-3


def test_minibatches_and_micro_batches_keep_the_samples_of_a_prompt_together() -> None:
    _, experience = leave_one_out([3, 7, 5, 2, 6, 4])
    generator = torch.Generator().manual_seed(1)
    seen = []
    for minibatch in shuffled_minibatches(experience, 12, generator, group_size=4):
        for micro in micro_batches(minibatch, 8, group_size=4):
            lengths = micro.prompt_mask.sum(1).view(-1, 4)
            assert (lengths == lengths[:, :1]).all()
            seen += lengths[:, 0].tolist()
    assert sorted(seen) == [2, 3, 4, 5, 6, 7] != seen


def test_a_run_that_computes_a_prompt_once_in_updates_computes_fewer_tokens() -> None:
    widths: dict[bool, int] = {}
    for share in (False, True):
        ppo, experience = leave_one_out([20, 20], share_prompt=share)
        tokens: list[int] = []
        ppo.policy.model.register_forward_pre_hook(
            lambda _module, _args, kwargs, tokens=tokens: tokens.append(
                kwargs["input_ids"].numel()
            ),
            with_kwargs=True,
        )
        for micro in micro_batches(experience, 8, group_size=ppo.hp.update_group_size):
            backward(ppo, micro, 1)
        widths[share] = sum(tokens)
        assert widths[share] == (2 * 20 if share else 8 * 20) + experience.response_mask.numel()


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
