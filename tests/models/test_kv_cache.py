"""The cache that grows in place gives the bits of the one that is joined anew at each step."""

from __future__ import annotations

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from rlhf_lightning.models import generation, kv_cache
from rlhf_lightning.models.generation import Responses, sample
from rlhf_lightning.models.kv_cache import RoomyLayer, make_room
from tests.tiny import EOS, PAD, llama_config, prompt_batch, tiny_policy


def mistral(window: int) -> MistralForCausalLM:
    torch.manual_seed(0)
    return MistralForCausalLM(
        MistralConfig(**llama_config().to_dict() | {"sliding_window": window, "head_dim": 16})
    )


def draw(model) -> Responses:
    return sample(
        model.eval(),
        prompt_batch([4, 7, 1, 3] * 16),
        max_new_tokens=30,
        temperature=1.0,
        eos_id=EOS,
        pad_id=PAD,
        generator=torch.Generator().manual_seed(0),
    )


@pytest.mark.parametrize("room", [1, 4, 64])
@pytest.mark.parametrize(
    "model",
    [tiny_policy(), tiny_policy(family="gpt2"), mistral(5)],
    ids=["llama", "gpt2", "window"],
)
def test_samples_are_those_of_the_joined_cache_to_the_bit(model, room, monkeypatch):
    """Rows leave the batch on the way, and room is made several times."""
    monkeypatch.setattr(kv_cache, "ROOM", room)
    ours = draw(model)
    assert ours.ended.any() and not ours.ended.all()
    monkeypatch.setattr(generation, "make_room", lambda cache: None)
    theirs = draw(model)
    assert torch.equal(ours.ids, theirs.ids) and torch.equal(ours.logprobs, theirs.logprobs)


def states(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 2, tokens, 4), torch.randn(3, 2, tokens, 4)


def test_a_step_moves_nothing_until_the_room_is_used_up():
    cache, joined = DynamicCache(), DynamicCache()
    first = states(5)
    cache.update(*first, 0)
    joined.update(*first, 0)
    make_room(cache)
    places = []
    for _ in range(kv_cache.ROOM + 2):
        new = states(1)
        expected = joined.update(*new, 0)
        keys, values = cache.update(*new, 0)
        assert torch.equal(keys, expected[0]) and torch.equal(values, expected[1])
        places.append(keys.data_ptr())
    assert len(set(places[: kv_cache.ROOM + 1])) == 1 and places[-1] != places[0]
    assert cache.get_seq_length() == 5 + kv_cache.ROOM + 2


def test_rows_that_stay_keep_their_keys_and_give_back_the_room_of_the_others():
    cache = DynamicCache()
    cache.update(*states(5), 0)
    make_room(cache)
    keys, _ = cache.update(*states(1), 0)
    cache.batch_select_indices(torch.tensor([2, 0]))
    layer = cache.layers[0]
    assert layer.keys is not None and torch.equal(layer.keys, keys[[2, 0]])
    assert layer.keys.untyped_storage().nbytes() == layer.keys.nbytes


def test_only_layers_that_keep_all_tokens_get_room():
    cache = DynamicCache(config=mistral(5).config)
    cache.update(*states(7), 0)
    make_room(cache)
    assert [type(layer) for layer in cache.layers[:1]] == [DynamicSlidingWindowLayer]
    plain = DynamicCache()
    plain.update(*states(7), 0)
    plain.layers.append(DynamicLayer())  # not filled: a layer that reads another's keys
    make_room(plain)
    assert [type(layer) for layer in plain.layers] == [RoomyLayer, DynamicLayer]
