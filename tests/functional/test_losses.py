import math

import pytest
import torch
from torch import Tensor

from rlhf_lightning.functional.losses import causal_lm_loss, kwise_loss, policy_loss, value_loss

NAN = math.nan
LOG2 = math.log(2)


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss, x)[0]


def dirty(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, torch.tensor(NAN))


def test_policy_loss_by_hand():
    # ρ = 2, A = 1: max(−2, −1.2) = −1.2 (clipped); ρ = 2, A = −1: max(2, 1.2) = 2;
    # ρ = 1, A = 3: −3
    logprobs = torch.tensor([[LOG2, LOG2, 0.0, NAN]])
    advantages = torch.tensor([[1.0, -1.0, 3.0, NAN]])
    mask = torch.tensor([[True, True, True, False]])
    old = torch.zeros(1, 4)
    loss, stats = policy_loss(logprobs, old, advantages, mask, clip_range=0.2, normalizer=3)
    assert loss.item() == pytest.approx((-1.2 + 2 - 3) / 3)
    assert stats.clip_fraction.item() == pytest.approx(1 / 3)
    # (ρ − 1) − log ρ = 1 − log 2, twice
    assert stats.approx_kl.item() == pytest.approx(2 * (1 - LOG2) / 3)
    assert stats.ratio_mean.item() == pytest.approx(5 / 3)
    assert stats.ratio_max.item() == 2


def test_value_loss_by_hand():
    # old 0, R = 1. V = 1: max(0, (0.2 − 1)²) = .64 (clipped); V = 0.1: .81, both alike
    values, old = torch.tensor([[1.0, 0.1, NAN]]), torch.tensor([[0.0, 0.0, NAN]])
    returns, mask = torch.tensor([[1.0, 1.0, NAN]]), torch.tensor([[True, True, False]])
    loss, stats = value_loss(values, old, returns, mask, clip_range=0.2, normalizer=2)
    assert loss.item() == pytest.approx(0.5 * (0.64 + 0.81) / 2)
    assert stats.clip_fraction.item() == 0.5


def test_kwise_loss_of_one_pair_is_bradley_terry():
    # −log σ(log 3) = log(1 + 1/3)
    scores = torch.tensor([math.log(3), 0.0])
    pairs, one = torch.tensor([[0, 1]]), torch.ones(1)
    got = kwise_loss(scores, pairs, one, one, prompts=1)
    assert got.item() == pytest.approx(math.log(4 / 3))


def test_kwise_options_by_hand():
    # difference 2 − 0 − 0.5·2 = 1; mean score 1, so + 0.1·1²; ε = 0.1
    scores = torch.tensor([2.0, 0.0])
    pairs, weights, margins = torch.tensor([[0, 1]]), torch.ones(1), torch.tensor([2.0])
    got = kwise_loss(
        scores, pairs, weights, margins, prompts=1, margin=0.5, centering=0.1, label_smoothing=0.1
    )
    want = 0.9 * math.log(1 + math.exp(-1)) + 0.1 * math.log(1 + math.e) + 0.1
    assert got.item() == pytest.approx(want)


def test_causal_lm_loss_by_hand():
    # the target at 1 is predicted by logits[0] = [0, log 3]: p = ¾; index 0 is never one
    logits = torch.tensor([[[0.0, math.log(3)], [NAN, NAN]]])
    got = causal_lm_loss(logits, torch.tensor([[0, 1]]), torch.tensor([[True, True]]), normalizer=1)
    assert got.item() == pytest.approx(-math.log(0.75))


def test_policy_loss_agrees_with_a_loop(draw, mask, lengths):
    new, old, advantages = draw(*mask.shape).requires_grad_(), draw(*mask.shape), draw(*mask.shape)
    n = float(sum(lengths))
    terms, clipped, kls, ratios = [], 0, [], []
    for i, length in enumerate(lengths):
        for t in range(length):
            ratio, a = torch.exp(new[i, t] - old[i, t]), advantages[i, t]
            kept = min(max(ratio.item(), 0.8), 1.2)
            inside = ratio if kept == ratio.item() else torch.tensor(kept)
            terms.append(torch.maximum(-a * ratio, -a * inside))
            clipped += (-a * inside).item() > (-a * ratio).item()
            ratios.append(ratio.item())
            kls.append(ratio.item() - 1 - math.log(ratio.item()))
    naive = torch.stack(terms).sum() / n
    loss, stats = policy_loss(
        dirty(new, mask),
        dirty(old, mask),
        dirty(advantages, mask),
        mask,
        clip_range=0.2,
        normalizer=n,
    )
    torch.testing.assert_close(loss, naive)
    torch.testing.assert_close(gradient(loss, new), gradient(naive, new))
    assert stats.clip_fraction.item() == pytest.approx(clipped / n)
    assert stats.approx_kl.item() == pytest.approx(sum(kls) / n, rel=1e-4)
    assert stats.ratio_mean.item() == pytest.approx(sum(ratios) / n, rel=1e-5)
    assert stats.ratio_max.item() == pytest.approx(max(ratios), rel=1e-5)


def test_value_loss_agrees_with_a_loop(draw, mask, lengths):
    new, old, returns = draw(*mask.shape).requires_grad_(), draw(*mask.shape), draw(*mask.shape)
    n = float(sum(lengths))
    terms, clipped = [], 0
    for i, length in enumerate(lengths):
        for t in range(length):
            near = old[i, t] + (new[i, t] - old[i, t]).clamp(-0.2, 0.2)
            plain, other = (new[i, t] - returns[i, t]) ** 2, (near - returns[i, t]) ** 2
            terms.append(0.5 * torch.maximum(plain, other))
            clipped += other.item() > plain.item()
    naive = torch.stack(terms).sum() / n
    loss, stats = value_loss(
        dirty(new, mask), dirty(old, mask), dirty(returns, mask), mask, clip_range=0.2, normalizer=n
    )
    torch.testing.assert_close(loss, naive)
    torch.testing.assert_close(gradient(loss, new), gradient(naive, new))
    assert stats.clip_fraction.item() == pytest.approx(clipped / n)


def ranked_batch(rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, list[slice]]:
    """8 prompts of 2 to 5 completions: pairs, weights, margins, completions, each one's pairs."""
    pairs, weights, margins, rows, start = [], [], [], [], 0
    for _ in range(8):
        k = int(torch.randint(2, 6, (), generator=rng))
        ranks = torch.randint(3, (k,), generator=rng).tolist()
        ranks[0], ranks[1] = 0, 1  # at least one pair
        mine = [(i, j) for i in range(k) for j in range(k) if ranks[i] < ranks[j]]
        rows.append(slice(len(pairs), len(pairs) + len(mine)))
        pairs += [(start + i, start + j) for i, j in mine]
        weights += [1 / len(mine)] * len(mine)
        margins += [float(ranks[j] - ranks[i]) for i, j in mine]
        start += k
    return (
        torch.tensor(pairs),
        torch.tensor(weights),
        torch.tensor(margins),
        torch.tensor(start),
        rows,
    )


@pytest.mark.parametrize(
    "options", [{}, {"margin": 0.3}, {"centering": 0.01}, {"label_smoothing": 0.1}]
)
def test_kwise_loss_agrees_with_a_loop_over_prompts(draw, rng, options):
    pairs, weights, margins, completions, rows = ranked_batch(rng)
    scores = (2 * draw(int(completions))).requires_grad_()
    eps, naive = options.get("label_smoothing", 0.0), torch.zeros(())
    for prompt in rows:
        mean = torch.zeros(())
        for m in range(prompt.start, prompt.stop):
            w, l = scores[pairs[m, 0]], scores[pairs[m, 1]]  # noqa: E741
            p = torch.sigmoid(w - l - options.get("margin", 0.0) * margins[m])
            mean = mean - (1 - eps) * p.log() - eps * (1 - p).log()
            mean = mean + options.get("centering", 0.0) * ((w + l) / 2) ** 2
        naive = naive + mean / (prompt.stop - prompt.start) / 8
    loss = kwise_loss(scores, pairs, weights, margins, prompts=8, **options)
    torch.testing.assert_close(loss, naive)
    torch.testing.assert_close(gradient(loss, scores), gradient(naive, scores))


def test_every_prompt_weighs_the_same_whatever_its_k():
    # at equal scores each pair costs log 2, and so does the mean over 1 or 3 pairs
    pairs = torch.tensor([[0, 1], [2, 3], [2, 4], [3, 4]])
    weights = torch.tensor([1.0, 1 / 3, 1 / 3, 1 / 3])
    got = kwise_loss(torch.zeros(5), pairs, weights, torch.zeros(4), prompts=2)
    assert got.item() == pytest.approx(LOG2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_lm_loss_agrees_with_a_loop(draw, rng, mask, dtype):
    logits = (3 * draw(8, 7, 11)).to(dtype).requires_grad_()
    ids = torch.randint(11, (8, 7), generator=rng)
    targets = mask & (draw(8, 7) > -0.5)
    terms = [
        -logits[i, t - 1].float().log_softmax(-1)[ids[i, t]]
        for i in range(8)
        for t in range(1, 7)
        if targets[i, t]
    ]
    naive = torch.stack(terms).sum() / 20
    loss = causal_lm_loss(logits, ids, targets, normalizer=20)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, naive)
    torch.testing.assert_close(gradient(loss, logits), gradient(naive, logits))


def test_logits_that_predict_no_target_change_nothing(draw, mask):
    logits, ids = draw(8, 7, 5), torch.zeros(8, 7, dtype=torch.long)
    predicts = torch.nn.functional.pad(mask[:, 1:], (0, 1)).unsqueeze(-1)
    noisy = dirty(logits, predicts).requires_grad_()
    loss = causal_lm_loss(noisy, ids, mask, normalizer=9)
    assert torch.equal(loss, causal_lm_loss(logits, ids, mask, normalizer=9))
    assert gradient(loss, noisy).isfinite().all()


def test_the_ratio_is_one_on_the_first_minibatch(draw, mask):
    logprobs = draw(*mask.shape).requires_grad_()
    advantages = draw(*mask.shape)
    loss, stats = policy_loss(
        logprobs, logprobs.detach(), advantages, mask, clip_range=0.2, normalizer=mask.sum()
    )
    assert (stats.ratio_mean.item(), stats.ratio_max.item()) == (1, 1)
    assert (stats.clip_fraction.item(), stats.approx_kl.item()) == (0, 0)
    # and the gradient is the plain policy gradient −A/n
    want = -torch.where(mask, advantages, torch.zeros(())) / mask.sum()
    torch.testing.assert_close(gradient(loss, logprobs), want)


def policy_rows(x, data, rows, n):
    old, advantages, mask = data
    return policy_loss(
        x[rows], old[rows], advantages[rows], mask[rows], clip_range=0.2, normalizer=n
    )


def value_rows(x, data, rows, n):
    old, returns, mask = data
    return value_loss(x[rows], old[rows], returns[rows], mask[rows], clip_range=0.2, normalizer=n)


@pytest.mark.parametrize("call", [policy_rows, value_rows])
def test_eight_micro_batches_of_one_are_one_of_eight(draw, mask, call):
    x = draw(*mask.shape).requires_grad_()
    data = (draw(*mask.shape), draw(*mask.shape), mask)
    whole, stats = call(x, data, slice(0, 8), mask.sum())
    parts = [call(x, data, slice(i, i + 1), mask.sum()) for i in range(8)]
    loss = sum(part[0] for part in parts)
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(gradient(loss, x), gradient(whole, x))
    clip_fraction = sum(part[1].clip_fraction for part in parts)
    torch.testing.assert_close(clip_fraction, stats.clip_fraction)


def test_eight_prompts_one_by_one_are_eight_at_once(draw, rng):
    pairs, weights, margins, completions, rows = ranked_batch(rng)
    scores = draw(int(completions)).requires_grad_()
    whole = kwise_loss(scores, pairs, weights, margins, prompts=8, centering=0.1)
    loss = sum(
        kwise_loss(scores, pairs[r], weights[r], margins[r], prompts=8, centering=0.1) for r in rows
    )
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(gradient(loss, scores), gradient(whole, scores))


def test_eight_rows_of_text_one_by_one_are_eight_at_once(draw, mask):
    logits = draw(8, 7, 5).requires_grad_()
    ids = torch.arange(56).view(8, 7) % 5
    n = mask[:, 1:].sum()
    whole = causal_lm_loss(logits, ids, mask, normalizer=n)
    # the row of one token has no target: it adds 0, and no error
    loss = sum(
        causal_lm_loss(logits[i : i + 1], ids[i : i + 1], mask[i : i + 1], normalizer=n)
        for i in range(8)
    )
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(gradient(loss, logits), gradient(whole, logits))


def test_a_micro_batch_without_a_real_item_has_loss_and_gradient_zero():
    x = torch.ones(1, 2, requires_grad=True)
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    loss, stats = policy_loss(x, x.detach(), x.detach(), nothing, clip_range=0.2, normalizer=4)
    assert (loss.item(), stats.ratio_max.item()) == (0, 0)
    assert gradient(loss, x).tolist() == [[0, 0]]
    scores = torch.ones(2, requires_grad=True)
    no_pairs = torch.zeros(0, 2, dtype=torch.long)
    loss = kwise_loss(scores, no_pairs, torch.zeros(0), torch.zeros(0), prompts=4)
    assert gradient(loss, scores).tolist() == [0, 0]


def test_statistics_carry_no_gradient(draw, mask):
    x = draw(*mask.shape).requires_grad_()
    zeros = torch.zeros(*mask.shape)
    _, policy = policy_loss(x, zeros, zeros + 1, mask, clip_range=0.2, normalizer=1)
    _, value = value_loss(x, zeros, zeros, mask, clip_range=0.2, normalizer=1)
    for stats in (policy, value):
        assert not any(v.requires_grad for v in vars(stats).values())


def test_shapes_that_would_broadcast_are_refused(unchecked):
    x, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"got .*advantages \(2, 1\), mask \(2, 3\)"):
        unchecked(policy_loss)(x, x, x[:, :1], mask, clip_range=0.2, normalizer=6)
    with pytest.raises(ValueError, match=r"got .*returns \(2, 1\), mask \(2, 3\)"):
        unchecked(value_loss)(x, x, x[:, :1], mask, clip_range=0.2, normalizer=6)
    with pytest.raises(ValueError, match=r"got winners \(1,\), weights \(2,\)"):
        unchecked(kwise_loss)(x[0], torch.tensor([[0, 1]]), torch.ones(2), torch.ones(1), prompts=1)
    with pytest.raises(ValueError, match=r"got ids \(2, 1\), loss_mask \(2, 3\)"):
        unchecked(causal_lm_loss)(torch.zeros(2, 3, 4), x[:, :1].long(), mask, normalizer=1)
