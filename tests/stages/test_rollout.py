"""Collection: rows keep their order, whatever the chunks; nothing of a row depends on its neighbours."""

from __future__ import annotations

import pytest
import torch

from rlhf_lightning import processes, stages
from rlhf_lightning.rewards.base import Means, ScoreRequest
from rlhf_lightning.stages.rollout import Sampling, collect
from rlhf_lightning.stages.watching import weighted_means
from tests.stages.tiny_ppo import reward, tokenizer
from tests.tiny import prompt_batch, tiny_policy, tiny_scorer


@pytest.mark.parametrize("logits", [1, 2**28])
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_rows_come_back_in_the_prompts_order_with_their_own_values(
    chunk: int, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.rollout, "LOGITS", logits)
    prompts = prompt_batch([3, 9, 2, 6, 4, 4, 7, 1], width=12)
    sampling = Sampling(6, 1.0, chunk, tokenizer())
    rollout = collect(
        prompts,
        tiny_policy().eval(),
        tiny_policy(5).eval(),
        tiny_scorer().eval(),
        reward(),
        sampling,
        torch.Generator().manual_seed(0),
    )
    width = rollout.prompt_ids.shape[1]
    assert torch.equal(rollout.prompt_ids, prompts.ids[:, -width:])
    assert torch.equal(rollout.prompt_mask, prompts.mask[:, -width:])
    lengths = rollout.response_mask.sum(1)
    for row in range(8):
        alone = collect_again(prompts, row, rollout.response_ids[row, : lengths[row]])
        torch.testing.assert_close(
            rollout.ref_logprobs[row, : lengths[row]], alone, atol=1e-5, rtol=1e-5
        )
        assert (rollout.ref_logprobs[row, lengths[row] :] == 0).all()


def collect_again(
    prompts, row: int, response: torch.Tensor, *, seed: int = 5, temperature: float = 1.0
) -> torch.Tensor:
    """A model's log-probabilities of one response after its unpadded prompt; the reference's, if no other."""
    ids = torch.cat([prompts.ids[row][prompts.mask[row]], response])[None]
    logits = tiny_policy(seed)(input_ids=ids).logits[0, -len(response) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, response[:, None])[:, 0].detach()


@pytest.mark.parametrize("recompute", [False, True])
def test_the_temperature_divides_the_logits_of_policy_and_reference(recompute: bool) -> None:
    prompts = prompt_batch([3, 9, 2])
    rollout = collect(
        prompts,
        tiny_policy().eval(),
        tiny_policy(5).eval(),
        None,
        None,
        Sampling(6, 0.7, 3, tokenizer(), recompute_logprobs=recompute),
        torch.Generator().manual_seed(0),
    )
    for row in range(3):
        real = rollout.response_mask[row]
        response = rollout.response_ids[row][real]
        for seed, found in ((0, rollout.logprobs), (5, rollout.ref_logprobs)):
            alone = collect_again(prompts, row, response, seed=seed, temperature=0.7)
            torch.testing.assert_close(found[row][real], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("limit", "rows"), [(1, 3), (10 * 6 * 40, 9), (12 * 6 * 40, 12)])
def test_logits_of_a_pass_are_of_whole_groups_and_within_the_limit(
    limit: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.rollout, "LOGITS", limit)
    heights: list[int] = []
    reference = tiny_policy(5).eval()
    assert reference.config.vocab_size == 40
    reference.lm_head.register_forward_hook(lambda _m, args, _o: heights.append(len(args[0])))
    prompts = prompt_batch([4, 4, 4, 7, 7, 7, 2, 2, 2, 5, 5, 5], width=9)
    for first in range(0, 12, 3):
        prompts.ids[first : first + 3] = prompts.ids[first]
    collect(
        prompts,
        tiny_policy().eval(),
        reference,
        None,
        reward(),
        Sampling(6, 1.0, 12, tokenizer(), group_size=3),
        torch.Generator().manual_seed(0),
    )
    # prompts once each, then all responses
    assert max(heights) == rows


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize(("count", "group"), [(12, 1), (7, 1), (12, 4), (24, 3), (10, 4), (1, 4)])
def test_processes_share_whole_groups_and_every_row_is_found_again(
    size: int, count: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "world_size", lambda: size)
    parts = []
    for own in range(size):
        monkeypatch.setattr(processes, "rank", lambda own=own: own)
        parts.append(processes.share(count, group))
    assert len({len(part) for part in parts}) == 1  # nobody waits for a pass that never comes
    assert processes.in_order(parts, count, group) == list(range(count))
    for part in parts:
        for start in range(0, len(part), group):
            assert len({row // group for row in part[start : start + group]}) == 1


def test_a_validation_in_two_batches_is_that_in_one() -> None:
    """Entropy is a mean over tokens, the rest over responses."""
    parts = [
        ({"val/entropy": 2.0, "val/response_tokens": 10.0, "val/score": 1.0}, 2),
        ({"val/entropy": 1.0, "val/response_tokens": 30.0, "val/score": 4.0}, 1),
    ]
    found = weighted_means(parts)
    assert found["val/score"] == 2.0
    assert found["val/entropy"] == (20 * 2.0 + 30 * 1.0) / 50


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(("count", "group"), [(5, 1), (6, 1), (8, 4), (12, 4), (6, 4)])
def test_each_row_counts_in_one_process(
    size: int, count: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "world_size", lambda: size)
    counted: list[int] = []
    for own in range(size):
        monkeypatch.setattr(processes, "rank", lambda own=own: own)
        rows = processes.share(count, group)
        once = processes.counts_once(count, group)
        counted += [row for row, counts in zip(rows, once, strict=True) if counts]
    assert sorted(counted) == list(range(count))


def test_a_mean_over_responses_leaves_copies_out() -> None:
    means = Means()
    means.add("score", torch.tensor([1.0, 3.0]), None)
    means.add("score", torch.tensor([5.0, 100.0]), torch.tensor([True, False]))
    assert means.take() == {"score": 3.0}


@pytest.mark.parametrize("chunk", [1, 8])
def test_a_reward_is_told_which_rows_are_copies(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five rows are three in each of two processes: the second one's last is a copy."""
    seen: list[bool] = []

    class Reward:
        def __call__(self, request: ScoreRequest) -> torch.Tensor:
            assert request.counted is not None
            seen.extend(request.counted.tolist())
            return torch.zeros(len(request.response_ids))

    monkeypatch.setattr(stages.rollout, "gather", lambda own: [own, own])
    for module in (processes, stages.rollout):
        monkeypatch.setattr(module, "world_size", lambda: 2)
    for own, copies in ((0, 0), (1, 1)):
        monkeypatch.setattr(processes, "rank", lambda own=own: own)
        collect(
            prompt_batch([3, 9, 2, 6, 4]),
            tiny_policy().eval(),
            tiny_policy(5).eval(),
            None,
            Reward(),
            Sampling(6, 1.0, chunk, tokenizer()),
            torch.Generator().manual_seed(0),
        )
        assert (len(seen), seen.count(False)) == (3, copies)
        seen.clear()
