"""Sampling: its log-probabilities are the model's, and rows are independent of each other."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_lightning.functional.logprobs import token_logprobs
from rlhf_lightning.models import generation
from rlhf_lightning.models.adapters import backbone
from rlhf_lightning.models.forward import response_logits
from rlhf_lightning.models.generation import Responses, cast_once, sample
from tests.tiny import EOS, PAD, prompt_batch, tiny_policy


def draw(prompts, *, tokens=12, temperature=1.0, seed=0) -> Responses:
    return sample(
        tiny_policy().eval(),
        prompts,
        max_new_tokens=tokens,
        temperature=temperature,
        eos_id=EOS,
        pad_id=PAD,
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_are_those_of_a_full_forward_pass(temperature):
    prompts = prompt_batch([3, 7, 5, 1])
    responses = draw(prompts, temperature=temperature)
    logits = response_logits(
        tiny_policy(), prompts.ids, prompts.mask, responses.ids, responses.mask
    )
    expected = token_logprobs(logits, responses.ids, temperature=temperature)
    torch.testing.assert_close(
        responses.logprobs, expected.masked_fill(~responses.mask, 0.0), atol=1e-5, rtol=1e-5
    )


def test_rows_that_finish_leave_the_batch_without_changing_the_others(monkeypatch):
    """A row sampled alone with its own uniforms gives the same tokens as in a batch whose rows end early."""
    prompts = prompt_batch([4] * 64)
    together = draw(prompts, tokens=30)
    assert together.ended.any() and not together.ended.all()
    uniforms = torch.rand(64, 30, generator=torch.Generator().manual_seed(0))
    for row in (0, 17, 63):
        mine = uniforms[row : row + 1]
        monkeypatch.setattr(torch, "rand", lambda *size, generator, mine=mine: mine)
        alone = draw(prompts.rows(slice(row, row + 1)), tokens=30)
        length = int(together.mask[row].sum())
        assert alone.ids[0, :length].tolist() == together.ids[row, :length].tolist()
        assert int(alone.mask.sum()) == length


def test_a_prompt_that_stands_in_several_rows_is_computed_once_and_changes_nothing() -> None:
    prompts = prompt_batch([3, 7, 5, 1]).rows(torch.tensor([2, 0, 2, 1, 2, 3, 0]))
    model, widths = tiny_policy().eval(), []
    model.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: widths.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    uniforms = torch.rand(7, 12, generator=torch.Generator().manual_seed(0))
    said = {"max_new_tokens": 12, "temperature": 1.0, "eos_id": EOS, "pad_id": PAD}
    together = sample(model, prompts, uniforms=uniforms, **said)
    assert widths[:2] == [4, 7]
    for row in range(7):
        mine = slice(row, row + 1)
        alone = sample(model, prompts.rows(mine), uniforms=uniforms[mine], **said)
        length = int(together.mask[row].sum())
        assert alone.ids[0, :length].tolist() == together.ids[row, :length].tolist()
        torch.testing.assert_close(
            alone.logprobs[0, :length], together.logprobs[row, :length], atol=1e-5, rtol=1e-5
        )


def test_nothing_is_real_after_the_first_eos():
    responses = draw(prompt_batch([4] * 64), tokens=30)
    lengths = responses.mask.sum(1)
    for row in range(64):
        ids = responses.ids[row].tolist()
        assert (EOS in ids) == bool(responses.ended[row])
        if responses.ended[row]:
            assert ids.index(EOS) == lengths[row] - 1
            assert set(ids[int(lengths[row]) :]) <= {PAD}
    assert (responses.logprobs[~responses.mask] == 0).all()


def test_samples_follow_the_models_distribution():
    """First tokens of 20,000 draws against softmax(logits): the largest gap is below five standard errors."""
    prompts = prompt_batch([5]).rows(torch.zeros(20_000, dtype=torch.long))
    first = draw(prompts, tokens=1).ids[:, 0]
    seen = torch.bincount(first, minlength=40).float() / 20_000
    one = prompts.rows(slice(0, 1))
    expected = (
        tiny_policy()(input_ids=one.ids, attention_mask=one.mask.long()).logits[0, -1].softmax(-1)
    )
    error = ((expected * (1 - expected)) / 20_000).sqrt()
    assert ((seen - expected).abs() <= 5 * error + 1e-4).all()


def test_left_padding_and_its_contents_change_no_sample():
    plain, padded = prompt_batch([4, 6, 2]), prompt_batch([4, 6, 2], width=15)
    padded.ids[~padded.mask] = 17
    a, b = draw(plain), draw(padded)
    assert a.ids.tolist() == b.ids.tolist()
    torch.testing.assert_close(a.logprobs, b.logprobs, atol=1e-5, rtol=1e-5)


def test_temperature_zero_takes_the_likeliest_token_and_gives_its_own_logprob():
    prompts = prompt_batch([3, 7, 5])
    responses = draw(prompts, temperature=0, tokens=5)
    logits = response_logits(
        tiny_policy(), prompts.ids, prompts.mask, responses.ids, responses.mask
    )
    real = responses.mask
    assert (logits.argmax(-1) == responses.ids)[real].all()
    best = logits.float().log_softmax(-1).max(-1).values
    torch.testing.assert_close(responses.logprobs[real], best[real], atol=1e-5, rtol=1e-5)
    again = draw(prompts, temperature=0, tokens=5, seed=1)
    assert again.ids.tolist() == responses.ids.tolist()


class CountsCasts(TorchDispatchMode):
    """How many times a weight of the model is cast."""

    def __init__(self, model) -> None:
        super().__init__()
        self.weights = {p.data_ptr() for p in model.parameters()}
        self.casts = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.weights:
            self.casts += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_compiled_model_samples_without_being_compiled():
    """A cache that grows in place cannot be traced."""
    prompts, settings = prompt_batch([3, 7, 5, 1]), {"max_new_tokens": 8, "temperature": 1.0}
    settings |= {"eos_id": EOS, "pad_id": PAD}
    found = []
    for compiled in (False, True):
        model = tiny_policy().eval()
        if compiled:
            backbone(model).compile()
        generator = torch.Generator().manual_seed(0)
        found.append(sample(model, prompts, **settings, generator=generator))
    assert torch.equal(found[0].ids, found[1].ids)
    assert torch.equal(found[0].logprobs, found[1].logprobs)
    assert torch._dynamo.utils.counters["frames"]["total"] == 0


@pytest.mark.parametrize("trained", [True, False])
def test_under_autocast_frozen_weights_are_cast_once_too(trained):
    """torch's cache takes weights that want a gradient only: an adapter's backbone was cast for every token."""
    model, prompts = tiny_policy().eval().requires_grad_(trained), prompt_batch([3, 7, 5, 1])
    settings = {"max_new_tokens": 12, "temperature": 1.0, "eos_id": EOS, "pad_id": PAD}
    with (
        torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
        CountsCasts(model) as mode,
        cast_once(model, torch.device("cpu")),
    ):
        sample(model, prompts, **settings, generator=torch.Generator().manual_seed(0))
    assert mode.casts == sum(p.dim() == 2 for p in model.parameters()) - 1
    assert all(p.requires_grad is trained for p in model.parameters())


def test_under_autocast_a_weight_is_cast_once_for_a_batch_and_the_cast_is_forgotten(monkeypatch):
    """As Lightning trains with bf16-mixed: its autocast keeps no casts, since weights change between steps."""
    model, prompts = tiny_policy().eval(), prompt_batch([3, 7, 5, 1])
    casts, found = {}, {}
    for name, once in (("each", False), ("once", True)):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), CountsCasts(model) as mode:
            settings = {"max_new_tokens": 12, "temperature": 1.0, "eos_id": EOS, "pad_id": PAD}
            generator = torch.Generator().manual_seed(0)
            if once:
                with cast_once(model, torch.device("cpu")):
                    found[name] = sample(model, prompts, **settings, generator=generator)
            else:
                found[name] = sample(model, prompts, **settings, generator=generator)
        casts[name] = mode.casts
    matrices = sum(p.dim() == 2 for p in model.parameters()) - 1  # the embedding is only looked up
    assert casts["once"] == matrices < casts["each"]
    assert torch.equal(found["once"].ids, found["each"].ids)
    assert torch.equal(found["once"].logprobs, found["each"].logprobs)
    # a model that is spread over processes gives back each part after its layer, and so do its casts
    monkeypatch.setattr(generation, "is_sharded", lambda _model: True)
    with (
        torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
        CountsCasts(model) as mode,
        cast_once(model, torch.device("cpu")),
    ):
        sample(model, prompts, **settings, generator=torch.Generator().manual_seed(0))
    assert mode.casts == casts["each"]
    monkeypatch.undo()
    # with what an outer autocast kept, the next pass would have no graph to the weights
    with torch.autocast("cpu", torch.bfloat16):
        with cast_once(model, torch.device("cpu")):
            sample(model, prompts, **settings, generator=torch.Generator().manual_seed(0))
        model(prompts.ids).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
