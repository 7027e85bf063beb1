import math

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from rlhf_lightning.functional import logprobs as module
from rlhf_lightning.functional.logprobs import entropy, masked_token_logprobs, token_logprobs


def test_logprobs_by_hand():
    # softmax of [0, log 3] is [1/4, 3/4]
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, math.log(3)]]])
    got = token_logprobs(logits, torch.tensor([[0, 1]]))
    torch.testing.assert_close(got, torch.tensor([[math.log(0.25), math.log(0.75)]]))


def test_temperature_divides_the_logits():
    # [0, 2 log 3] / 2 is [0, log 3]
    logits = torch.tensor([[[0.0, 2 * math.log(3)]]])
    got = token_logprobs(logits, torch.tensor([[1]]), temperature=2.0)
    assert got.item() == pytest.approx(math.log(0.75))


def test_entropy_by_hand():
    # ¼ log 4 + ¾ log 4/3; a token of logit −inf adds nothing
    logits = torch.tensor([[[0.0, math.log(3), -math.inf]]], requires_grad=True)
    got = entropy(logits)
    assert got.item() == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3))
    got.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_entropy_of_a_uniform_distribution_is_log_v():
    torch.testing.assert_close(entropy(torch.zeros(2, 3, 5)), torch.full((2, 3), math.log(5)))


@pytest.mark.parametrize("chunk", [1, 25, 60, 2**22])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float64, 1e-12)]
)
def test_values_and_gradients_agree_with_log_softmax(
    draw, rng, monkeypatch, dtype, tolerance, temperature, chunk
):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    logits = (3 * draw(5, 4, 11)).to(dtype).requires_grad_()
    tokens = torch.randint(11, (5, 4), generator=rng)
    weights = draw(5, 4)
    wide = logits.double()
    logp = (wide / temperature).log_softmax(-1)
    naive = logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    naive_entropy = -(logp.exp() * logp).sum(-1)
    exact = torch.promote_types(dtype, torch.float32)
    for got, want in (
        (token_logprobs(logits, tokens, temperature=temperature), naive),
        (entropy(logits, temperature=temperature), naive_entropy),
    ):
        assert got.dtype == exact
        # the forward pass is in fp32 whatever the dtype of the logits
        torch.testing.assert_close(got, want.to(exact), rtol=2e-6, atol=2e-6)
        (gradient,) = torch.autograd.grad((got * weights).sum(), logits)
        (expected,) = torch.autograd.grad((want * weights).sum(), logits, retain_graph=True)
        torch.testing.assert_close(gradient, expected, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("chunk", [1, 25, 2**22])
def test_masked_logprobs_are_those_of_the_real_tokens_and_others_get_no_gradient(
    draw, rng, monkeypatch, chunk
):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    logits, tokens = draw(5, 4, 11), torch.randint(11, (5, 4), generator=rng)
    mask = torch.rand(5, 4, generator=rng) < 0.5
    expected = token_logprobs(logits, tokens)[mask]
    logits[~mask] = math.nan
    logits.requires_grad_()
    got = masked_token_logprobs(logits, tokens, mask)
    assert torch.equal(got, expected)
    (gradient,) = torch.autograd.grad(got.square().sum(), logits)
    assert (gradient[~mask] == 0).all() and gradient[mask].isfinite().all()
    clean = logits.detach().nan_to_num(0.0).requires_grad_()
    loss = clean.log_softmax(-1).gather(-1, tokens[..., None])[..., 0][mask].square().sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(loss, clean)[0])
    none = masked_token_logprobs(logits, tokens, torch.zeros(5, 4, dtype=torch.bool))
    assert none.shape == (0,) and (torch.autograd.grad(none.sum(), logits)[0] == 0).all()


def test_half_precision_keeps_no_fp32_copy_for_the_backward_pass():
    logits = torch.zeros(4, 8, 100, dtype=torch.bfloat16, requires_grad=True)
    wide: list[torch.Size] = []

    def seen(tensor):
        if tensor.dtype == torch.float32 and tensor.numel() >= 100:
            wide.append(tensor.shape)
        return tensor

    with saved_tensors_hooks(seen, lambda tensor: tensor):
        token_logprobs(logits, torch.zeros(4, 8, dtype=torch.long)).sum()
        entropy(logits).sum()
    assert wide == []


@pytest.mark.parametrize(
    "call",
    [
        lambda t: token_logprobs(
            torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.long), temperature=t
        ),
        lambda t: entropy(torch.zeros(1, 1, 2), temperature=t),
    ],
)
def test_a_temperature_of_zero_is_refused(call):
    with pytest.raises(ValueError, match=r"temperature must be > 0, got 0"):
        call(0.0)
