"""Where trl's PPO means something else: how far the numbers are apart, and why ours are what they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from trl.experimental.ppo import ppo_trainer

from compare import ours
from compare.table import differs, same, same_gradients
from compare.test_ppo import HP, TEMPERATURE, four, theirs
from compare.tokens import responses
from compare.trl_ppo import Pass, gradients, iterate
from rlhf_lightning.config import PPOConfig
from rlhf_lightning.functional.masked import whiten
from rlhf_lightning.functional.scores import RunningMoments
from rlhf_lightning.stages.ppo_losses import actor_losses
from rlhf_lightning.stages.rollout import micro_batches, shaped_scores, to_experience

pytestmark = pytest.mark.parametrize("family", ["llama", "gpt2"])


def experience_of(family: str, seen: dict[str, Tensor], hp: PPOConfig):
    """Ours, by our own masks throughout."""
    mine = ours.rollout(four(family), seen, temperature=TEMPERATURE)
    return to_experience(mine, hp, kl_coef=hp.kl_coef, moments=RunningMoments())[0]


def test_the_score_lands_on_the_last_token_and_not_behind_it(family: str) -> None:
    seen = theirs(family, ragged=True).passes[0].seen
    mask, extended = ~seen["padding_mask"], ~seen["padding_mask_p1"]
    found = experience_of(family, seen, HP)
    differs(
        "returns of padded responses",
        family,
        found.returns[mask],
        seen["returns"][mask],
        "the episode ends with EOS; a value behind it would be learned only to be taken off again",
        at_least=1e-2,
    )
    # of 8 responses two fill the width; the six others have one more target each
    assert int(extended.sum()) == int(mask.sum()) + 6
    differs(
        "targets of the value model",
        family,
        found.response_mask.sum().double(),
        extended.sum().double(),
        "only tokens of the response are targets, not the padding that follows",
        at_least=0.1,
    )


def test_whitening_divides_by_the_population_variance(family: str) -> None:
    iteration = theirs(family, ragged=False)
    seen = iteration.passes[0].seen
    found = experience_of(family, seen, replace(HP, whiten_advantages=True)).advantages
    ((_, whitened),) = iteration.whitened
    n = whitened.numel()
    differs(
        "whitened advantages",
        family,
        found,
        whitened,
        f"σ² is that of these n = {n} tokens (/ n, theirs / (n − 1)), so that their spread is exactly 1",
        at_least=1e-3,
    )
    # the variances differ by n / (n − 1) and by nothing else
    same("whitened advantages · √((n − 1)/n)", family, found * ((n - 1) / n) ** 0.5, whitened)


def test_one_token_can_be_whitened(family: str) -> None:
    one, mask = torch.tensor([[2.0]]), torch.tensor([[True]])
    differs(
        "whitened advantage of a single token",
        family,
        whiten(one, mask)[0, 0],
        ppo_trainer.masked_whiten(one, mask)[0, 0],
        "a single token has nothing to stand out from: 0, where / (n − 1) gives NaN",
        at_least=1.0,
    )


def test_whitened_rewards_are_scaled_and_never_shifted(family: str, tmp_path: Path) -> None:
    iteration = iterate(
        four(family),
        responses(ragged=False),
        tmp_path,
        temperature=TEMPERATURE,
        whiten_rewards=True,
    )
    (rewards, whitened), _ = iteration.whitened
    mine = whiten(rewards, torch.ones_like(rewards, dtype=torch.bool), center=False)
    differs(
        "whitened rewards",
        family,
        mine,
        whitened,
        "scaled only, so that a reward of 0 stays 0; theirs adds the mean again, a wage for every token",
        at_least=1e-2,
    )


def test_an_answer_that_was_cut_gets_a_fixed_score(family: str) -> None:
    """missing_eos=replace is our default, `subtract` (compared in test_ppo) their option."""
    seen = theirs(family, ragged=True).passes[0].seen
    mine = ours.rollout(four(family), seen, temperature=TEMPERATURE)
    scores, _ = shaped_scores(mine, replace(HP, missing_eos="replace"), RunningMoments())
    cut = ~mine.ended
    assert int(cut.sum()) == 1
    differs(
        "score of an answer without EOS",
        family,
        scores[cut][0],
        seen["scores"][cut][0],
        "it was not judged as a whole: a high score of the part must not outweigh the penalty",
        at_least=1e-2,
    )


def test_splitting_a_minibatch_never_changes_our_gradient(family: str, tmp_path: Path) -> None:
    """Eight ragged rows as one micro-batch, and as four of two."""

    def run(rows: int) -> list[Pass]:
        split = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 8 // rows}
        answers = responses(ragged=True)
        return iterate(
            four(family), answers, tmp_path, copies=2, temperature=TEMPERATURE, **split
        ).passes

    ((whole,), parts) = run(8), run(2)
    assert len(parts) == 4
    assert all(flat(p.policy).equal(flat(whole.policy)) for p in parts)  # no step between them
    models = four(family)
    minibatch = ours.micro_batch(whole, mask=~whole.seen["padding_mask"])
    tokens = int(minibatch.response_mask.sum())
    for micro in micro_batches(minibatch, 2):
        actor_losses(models.policy, micro, HP, tokens=tokens)[0].backward()
    mine = gradients(models.policy)
    same_gradients(
        "policy gradients: ours in micro-batches of 2, theirs whole",
        family,
        mine,
        whole.policy_gradients,
    )
    differs(
        "policy gradients: both in micro-batches of 2",
        family,
        flat(mine),
        flat(parts[-1].policy_gradients),
        "each token weighs 1 / tokens of the minibatch; theirs more where its micro-batch is short",
        at_least=1e-2,
    )


def flat(found: dict[str, Tensor]) -> Tensor:
    """All of them in one row, by name."""
    return torch.cat([found[name].flatten() for name in sorted(found)])


def test_approx_kl_counts_real_tokens_only(family: str) -> None:
    iteration, models = theirs(family, ragged=True), four(family)
    found = [
        ours.policy_pass(models, p, ours.micro_batch(p, mask=~p.seen["padding_mask"]), HP)[1]
        for p in iteration.passes
    ]
    differs(
        "approx_kl of the update, mean of 4 passes",
        family,
        torch.stack([statistics["approx_kl"] for statistics in found]).mean(),
        torch.tensor(iteration.logged["policy/approxkl_avg"]),
        "k3, unbiased, over real tokens; theirs is k2 over the padding too, which waters it down",
        at_least=1e-2,
    )
