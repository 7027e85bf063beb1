import math

import pytest
import torch

from rlhf_lightning.functional.masked import masked_mean, masked_sum, masked_var, whiten

NAN = math.nan
X = torch.tensor([[1.0, 3.0, NAN], [8.0, NAN, math.inf]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_statistics_by_hand():
    # real tokens 1, 3, 8: sum 12, mean 4, variance (9 + 1 + 16) / 3
    assert masked_sum(X, MASK).item() == 12
    assert masked_mean(X, MASK).item() == 4
    assert masked_var(X, MASK).item() == pytest.approx(26 / 3)


def test_whiten_by_hand():
    # (x − 4) / √(26/3): −3, −1, 4 over 2.9439
    want = torch.tensor([[-3.0, -1.0, 0.0], [4.0, 0.0, 0.0]]) / math.sqrt(26 / 3)
    torch.testing.assert_close(whiten(X, MASK), want)


def test_whiten_without_center_scales_only():
    want = torch.tensor([[1.0, 3.0, 0.0], [8.0, 0.0, 0.0]]) / math.sqrt(26 / 3)
    torch.testing.assert_close(whiten(X, MASK, center=False), want)


def test_a_constant_whitens_to_zero():
    assert whiten(torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool)).tolist() == [[0, 0]] * 2


def test_statistics_agree_with_plain_loops(draw, mask, lengths):
    x = draw(*mask.shape)
    real = [x[i, j].item() for i, n in enumerate(lengths) for j in range(n)]
    mean = sum(real) / len(real)
    var = sum((v - mean) ** 2 for v in real) / len(real)
    assert masked_sum(x, mask).item() == pytest.approx(sum(real), abs=1e-5)
    assert masked_mean(x, mask).item() == pytest.approx(mean, abs=1e-6)
    assert masked_var(x, mask).item() == pytest.approx(var, rel=1e-5)
    white = whiten(x, mask)
    for i, n in enumerate(lengths):
        for j in range(7):
            want = (x[i, j].item() - mean) / math.sqrt(var + 1e-8) if j < n else 0.0
            assert white[i, j].item() == pytest.approx(want, abs=1e-5)


def test_padding_contents_change_nothing(draw, mask):
    x = draw(*mask.shape)
    dirty = torch.where(mask, x, torch.tensor(NAN))
    for f in (masked_sum, masked_mean, masked_var, whiten):
        torch.testing.assert_close(f(dirty, mask), f(x, mask), rtol=0, atol=0)


def test_half_precision_is_summed_in_fp32():
    # 4096 ones: bfloat16 stops counting at 256
    x = torch.ones(1, 4096, dtype=torch.bfloat16)
    total = masked_sum(x, torch.ones(1, 4096, dtype=torch.bool))
    assert (total.item(), total.dtype) == (4096, torch.float32)


@pytest.mark.parametrize("f", [masked_mean, masked_var, whiten])
def test_a_mask_without_a_real_token_is_refused(f):
    with pytest.raises(
        ValueError, match=r"mask must have a real token, got none in shape \(2, 3\)"
    ):
        f(X, torch.zeros_like(MASK))


def test_the_sum_of_nothing_is_zero():
    assert masked_sum(X, torch.zeros_like(MASK)).item() == 0


def test_shapes_that_would_broadcast_are_refused(unchecked):
    with pytest.raises(ValueError, match=r"shapes must be equal, got x \(2, 3\), mask \(2, 1\)"):
        unchecked(masked_sum)(X, MASK[:, :1])


def test_arguments_are_not_edited(draw, mask):
    x = draw(*mask.shape)
    before = x.clone()
    whiten(x, mask)
    assert torch.equal(x, before)
