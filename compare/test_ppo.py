"""PPO: from token log-probabilities to the gradients of both networks, one iteration of trl's PPOTrainer."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor

from compare import ours
from compare.table import same, same_gradients
from compare.tokens import responses
from compare.trl_ppo import Iteration, Models, iterate
from rlhf_lightning.config import PPOConfig
from rlhf_lightning.functional.advantages import token_rewards
from rlhf_lightning.functional.kl import kl_k1, kl_k3
from rlhf_lightning.functional.scores import RunningMoments
from rlhf_lightning.stages.rollout import rollout_statistics, shaped_scores, to_experience
from tests.tiny import PAD, tiny_policy, tiny_scorer

pytestmark = pytest.mark.parametrize("family", ["llama", "gpt2"])

TEMPERATURE = 0.7
HP = PPOConfig(
    temperature=TEMPERATURE,
    kl_coef=0.05,
    gamma=0.99,
    gae_lambda=0.95,
    clip_range=0.2,
    value_clip_range=0.2,
    value_coef=0.1,
    missing_eos="subtract",
    missing_eos_score=-1.0,
    whiten_advantages=False,
)
"""trl's defaults, but a discount that would show; its EOS rule; whitening apart (test_ppo_differences)."""


def four(family: str) -> Models:
    """Four networks of unlike weights."""
    return Models(
        policy=tiny_policy(0, family=family),
        reference=tiny_policy(5, family=family),
        value=tiny_scorer(1, family=family),
        reward=tiny_scorer(2, family=family),
    )


@cache
def theirs(family: str, *, ragged: bool, kl_estimator: str = "k1") -> Iteration:
    """Two epochs of two minibatches: all but the first pass have ratios other than one."""
    with TemporaryDirectory() as folder:
        return iterate(
            four(family),
            responses(ragged=ragged),
            Path(folder),
            temperature=TEMPERATURE,
            gamma=HP.gamma,
            missing_eos_penalty=1.0,
            num_ppo_epochs=2,
            num_mini_batches=2,
            learning_rate=3e-3,
            kl_estimator=kl_estimator,
        )


def test_the_same_tokens_have_the_same_logprobs_kl_values_and_scores(family: str) -> None:
    """Ragged: prompts padded on the left, responses on the right, one cut by the length limit."""
    iteration = theirs(family, ragged=True)
    seen = iteration.passes[0].seen
    mine = ours.rollout(four(family), seen, temperature=TEMPERATURE)
    mask = ~seen["padding_mask"]
    assert torch.equal(mask, mine.response_mask)
    assert 0 < int((~mask).sum()) < mask.numel()
    same("response log-probabilities", family, mine.logprobs[mask], seen["logprobs"][mask])
    same("reference log-probabilities", family, mine.ref_logprobs[mask], seen["ref_logprobs"][mask])
    same("values", family, mine.values[mask], seen["values"][mask])
    scores, _ = shaped_scores(mine, HP, RunningMoments())
    same("scores, 1 off where EOS is missing", family, scores, seen["scores"])
    k1 = kl_k1(mine.logprobs, mine.ref_logprobs)
    same("KL per token, k1", family, k1[mask], seen["kl"][mask])
    same("KL per sequence, k1", family, (k1 * mask).sum(1), seen["kl"].sum(1))
    logged = torch.tensor(rollout_statistics(mine)["rollout/kl_k1"])
    same(
        "KL as logged",
        family,
        logged,
        torch.tensor(iteration.logged["objective/kl"]),
        terms=seen["kl"].sum(1).abs().mean(),
    )


def test_k3_is_the_same_estimator(family: str) -> None:
    seen = theirs(family, ragged=True, kl_estimator="k3").passes[0].seen
    mine = ours.rollout(four(family), seen, temperature=TEMPERATURE)
    mask, found = mine.response_mask, kl_k3(mine.logprobs, mine.ref_logprobs)
    same("KL per token, k3", family, found[mask], seen["kl"][mask])


def test_experience_is_the_same_where_no_response_is_padded(family: str) -> None:
    """From the weights to advantages and returns, with nothing of theirs on our side."""
    iteration = theirs(family, ragged=False)
    seen = iteration.passes[0].seen
    mine = ours.rollout(four(family), seen, temperature=TEMPERATURE)
    experience, _ = to_experience(mine, HP, kl_coef=HP.kl_coef, moments=RunningMoments())
    ((advantages, _),) = iteration.whitened
    same("advantages, full-length responses", family, experience.advantages, advantages)
    same("returns, full-length responses", family, experience.returns, seen["returns"])


def test_experience_is_the_same_on_padded_responses_with_their_end_of_an_episode(
    family: str,
) -> None:
    """trl ends an episode one step after the last token. Told that this step is real, ours says the same."""
    iteration = theirs(family, ragged=True)
    seen = iteration.passes[0].seen
    mine = ours.rollout(four(family), seen, temperature=TEMPERATURE)
    mine.response_mask = mask = ~seen["padding_mask_p1"]
    mine.values = seen["values"]
    scores, _ = shaped_scores(mine, HP, RunningMoments())
    rewards = token_rewards(
        scores, kl_k1(mine.logprobs, mine.ref_logprobs), mask, kl_coef=HP.kl_coef
    )
    experience, _ = to_experience(mine, HP, kl_coef=HP.kl_coef, moments=RunningMoments())
    ((advantages, _),) = iteration.whitened
    same("rewards, ragged, their last step", family, rewards[mask], seen["rewards"][mask])
    same(
        "advantages, ragged, their last step", family, experience.advantages[mask], advantages[mask]
    )
    same(
        "returns, ragged, their last step", family, experience.returns[mask], seen["returns"][mask]
    )


def test_losses_and_gradients_are_the_same_in_every_pass_of_two_epochs(family: str) -> None:
    """Ragged; the first pass has ratio one, by the last the policy's clip is at work."""
    models, passes = four(family), theirs(family, ragged=True).passes
    policy_losses, value_losses, clipped = [], [], []
    policy_gradients, value_gradients = {}, {}
    for number, found in enumerate(passes):
        micro = ours.micro_batch(found, mask=~found.seen["padding_mask"])
        loss, statistics, gradients = ours.policy_pass(models, found, micro, HP)
        policy_losses.append(loss)
        policy_gradients |= numbered(gradients, number)
        clipped.append(float(statistics["clip_fraction"]))
        micro = ours.micro_batch(found, mask=~found.seen["padding_mask_p1"])
        loss, gradients = ours.value_pass(models, found, micro, HP)
        value_losses.append(loss)
        value_gradients |= numbered(gradients, number)
    assert len(clipped) == 4
    assert clipped[0] == 0 < clipped[-1]
    same(
        "policy loss, ragged, 4 passes",
        family,
        torch.stack(policy_losses),
        torch.stack([p.seen["pg_loss"] for p in passes]),
        terms=torch.stack([p.seen["pg_loss_max"].abs().mean() for p in passes]),
    )
    their_losses = torch.stack([p.seen["vf_loss"] for p in passes])
    same(
        "value loss, ragged, their last step, 4 passes",
        family,
        torch.stack(value_losses),
        their_losses,
    )
    expected = [numbered(p.policy_gradients, i) for i, p in enumerate(passes)]
    same_gradients("policy gradients, ragged, 4 passes", family, policy_gradients, joined(expected))
    expected = [numbered(p.value_gradients, i) for i, p in enumerate(passes)]
    same_gradients(
        "value gradients, ragged, their last step, 4 passes",
        family,
        value_gradients,
        joined(expected),
    )


def numbered(gradients: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """The gradients of one of several passes, under names of their own."""
    return {f"{number}.{name}": gradient for name, gradient in gradients.items()}


def joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """All of them in one."""
    return {name: gradient for part in parts for name, gradient in part.items()}


def test_value_loss_is_the_same_where_no_response_is_padded(family: str) -> None:
    models, found = four(family), theirs(family, ragged=False).passes[-1]
    micro = ours.micro_batch(found, mask=found.seen["responses"] != PAD)
    loss, gradients = ours.value_pass(models, found, micro, HP)
    same("value loss, full-length responses", family, loss, found.seen["vf_loss"])
    same_gradients(
        "value gradients, full-length responses", family, gradients, found.value_gradients
    )
