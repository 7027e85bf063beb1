import math

import pytest
import torch

from rlhf_lightning.functional.advantages import gae, rloo, token_rewards

NAN = math.nan


def test_token_rewards_by_hand():
    # β = 0.1; the score 2 lands on the second row's only token
    kl = torch.tensor([[1.0, -2.0, 3.0], [4.0, NAN, NAN]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    got = token_rewards(torch.tensor([1.0, 2.0]), kl, mask, kl_coef=0.1)
    want = torch.tensor([[-0.1, 0.2, -0.3 + 1.0], [-0.4 + 2.0, 0.0, 0.0]])
    torch.testing.assert_close(got, want)


def test_gae_by_hand():
    # γ = ½, λ = ½. δ₁ = 4 − 2 = 2 (V after the end is 0), δ₀ = 1 + ½·2 − 1 = 1
    # A₁ = 2, A₀ = 1 + ¼·2 = 1.5; returns 1.5 + 1 and 2 + 2
    rewards = torch.tensor([[1.0, 4.0, NAN]])
    values = torch.tensor([[1.0, 2.0, NAN]])
    mask = torch.tensor([[True, True, False]])
    advantages, returns = gae(rewards, values, mask, gamma=0.5, gae_lambda=0.5)
    assert advantages.tolist() == [[1.5, 2.0, 0.0]]
    assert returns.tolist() == [[2.5, 4.0, 0.0]]


def test_lambda_one_gives_the_discounted_return():
    # R₀ = 1 + 0.5·2 + 0.25·4 = 3, whatever the values
    _, returns = gae(
        torch.tensor([[1.0, 2.0, 4.0]]),
        torch.tensor([[7.0, -3.0, 5.0]]),
        torch.ones(1, 3, dtype=torch.bool),
        gamma=0.5,
        gae_lambda=1.0,
    )
    torch.testing.assert_close(returns, torch.tensor([[3.0, 4.0, 4.0]]))


def naive_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t = Σ_k (γλ)^k δ_{t+k}, straight from the definition."""
    n = len(rewards)
    nexts = [*values[1:], 0.0]
    delta = [rewards[t] + gamma * nexts[t] - values[t] for t in range(n)]
    return [sum((gamma * lam) ** k * delta[t + k] for k in range(n - t)) for t in range(n)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.99, 0.0), (1, 1)])
def test_gae_agrees_with_its_definition(draw, mask, lengths, gamma, lam):
    rewards, values = draw(*mask.shape), draw(*mask.shape)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, gae_lambda=lam)
    for i, n in enumerate(lengths):
        want = naive_gae(rewards[i, :n].tolist(), values[i, :n].tolist(), gamma, lam)
        assert advantages[i].tolist() == pytest.approx(want + [0.0] * (7 - n), abs=1e-5)
        ret = [a + v for a, v in zip(want, values[i, :n].tolist(), strict=True)]
        assert returns[i].tolist() == pytest.approx(ret + [0.0] * (7 - n), abs=1e-5)


def test_token_rewards_agree_with_a_loop(draw, mask, lengths):
    scores, kl = draw(8), draw(*mask.shape)
    got = token_rewards(scores, kl, mask, kl_coef=0.05)
    for i, n in enumerate(lengths):
        want = [-0.05 * kl[i, t].item() + (scores[i].item() if t == n - 1 else 0) for t in range(n)]
        assert got[i].tolist() == pytest.approx(want + [0.0] * (7 - n), abs=1e-6)


def test_padding_never_changes_advantages(draw, mask):
    scores, kl, values = draw(8), draw(*mask.shape), draw(*mask.shape)
    dirty_kl, dirty_values = (torch.where(mask, x, torch.tensor(NAN)) for x in (kl, values))
    clean = token_rewards(scores, kl, mask, kl_coef=0.1)
    assert torch.equal(token_rewards(scores, dirty_kl, mask, kl_coef=0.1), clean)
    dirty_rewards = torch.where(mask, clean, torch.tensor(math.inf))
    want = gae(clean, values, mask, gamma=1.0, gae_lambda=0.95)
    got = gae(dirty_rewards, dirty_values, mask, gamma=1.0, gae_lambda=0.95)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def test_more_padding_never_changes_advantages(draw, mask):
    rewards, values = draw(*mask.shape), draw(*mask.shape)
    wider = [torch.nn.functional.pad(x, (0, 3)) for x in (rewards, values, mask)]
    want = gae(rewards, values, mask, gamma=1.0, gae_lambda=0.95)
    got = gae(*wider, gamma=1.0, gae_lambda=0.95)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a[:, :7], b)


def call_gae(mask):
    x = torch.zeros(mask.shape)
    return gae(x, x, mask, gamma=1.0, gae_lambda=0.95)


def call_token_rewards(mask):
    return token_rewards(torch.zeros(len(mask)), torch.zeros(mask.shape), mask, kl_coef=0.1)


@pytest.mark.parametrize("call", [call_gae, call_token_rewards])
def test_an_empty_row_is_refused(call):
    with pytest.raises(ValueError, match="a real token in every row, got none in row 1"):
        call(torch.tensor([[True, False], [False, False]]))


@pytest.mark.parametrize("call", [call_gae, call_token_rewards])
def test_padding_before_a_real_token_is_refused(call):
    with pytest.raises(ValueError, match=r"must be right-padded, got padding before .* in row 1"):
        call(torch.tensor([[True, False, False], [True, False, True]]))


def test_shapes_that_would_broadcast_are_refused(unchecked):
    x, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"got rewards \(2, 3\), values \(2, 1\), mask \(2, 3\)"):
        unchecked(gae)(x, x[:, :1], mask, gamma=1.0, gae_lambda=0.95)
    with pytest.raises(ValueError, match=r"got kl \(2, 1\), mask \(2, 3\)"):
        unchecked(token_rewards)(x[:, 0], x[:, :1], mask, kl_coef=0.1)
    with pytest.raises(ValueError, match=r"got scores \(1,\), rows \(2,\)"):
        unchecked(token_rewards)(x[:1, 0], x, mask, kl_coef=0.1)


def test_leave_one_out_by_hand():
    # R = (1 + 2, 4, 5 − 3, 3): prompt a has 3 and 4, prompt b has 2 and 3
    # A = (3 − 4, 4 − 3, 2 − 3, 3 − 2) on every real token
    rewards = torch.tensor([[1.0, 2.0], [4.0, NAN], [5.0, -3.0], [0.0, 3.0]])
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    got = rloo(rewards, mask, samples=2)
    want = torch.tensor([[-1.0, -1.0], [1.0, 0.0], [-1.0, -1.0], [1.0, 1.0]])
    torch.testing.assert_close(got, want)


def test_leave_one_out_agrees_with_a_loop_and_sums_to_zero_over_a_group():
    generator = torch.Generator().manual_seed(0)
    for samples in (2, 3, 5):
        rewards = torch.randn(3 * samples, 6, generator=generator)
        mask = torch.arange(6) < torch.randint(1, 7, (3 * samples, 1), generator=generator)
        got = rloo(rewards, mask, samples=samples)
        totals = [float(r[m].sum()) for r, m in zip(rewards, mask, strict=True)]
        for i, total in enumerate(totals):
            first = i // samples * samples
            others = [totals[j] for j in range(first, first + samples) if j != i]
            assert float(got[i, 0]) == pytest.approx(total - sum(others) / len(others), abs=1e-5)
        assert got[:, 0].view(3, samples).sum(1).abs().max() < 1e-5


@pytest.mark.parametrize(("rows", "samples"), [(4, 1), (5, 2)])
def test_leave_one_out_refuses_rows_that_are_no_groups(rows, samples):
    rewards = torch.zeros(rows, 2)
    with pytest.raises(ValueError, match="groups of >= 2 samples"):
        rloo(rewards, torch.ones(rows, 2).bool(), samples=samples)
