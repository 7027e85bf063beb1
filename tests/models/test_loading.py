"""Making, saving and loading models: what is drawn, what is off, and what survives the disk."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from rlhf_lightning.config import LoRAConfig, ModelConfig
from rlhf_lightning.data.tokenizer import tokenizer_fingerprint, train_tokenizer
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.adapters import add_adapter, backbone, save_adapter
from rlhf_lightning.models.dropout import set_dropout
from rlhf_lightning.models.forward import sequence_scores
from rlhf_lightning.models.loading import (
    compiled,
    load_policy,
    load_scorer,
    load_tokenizer,
    new_policy,
    new_scorer,
    save,
    scorer_on,
)

SHAPES = {
    "llama": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2},
}


def config(family: str) -> ModelConfig:
    return ModelConfig(name="tiny", architecture=SHAPES[family], context_length=32)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(iter(["the fox is red"] * 20), vocab_size=300)


@pytest.fixture(params=["llama", "gpt2"])
def policy_folder(request: pytest.FixtureRequest, tokenizer, tmp_path: Path) -> tuple[str, Path]:
    """A family, and a folder with a policy of it."""
    folder = tmp_path / "policy"
    save(new_policy(config(request.param), tokenizer, seed=5), tokenizer, folder)
    return request.param, folder


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[k], other[k]) for k in mine)


def test_a_policy_and_its_tokenizer_come_back_as_they_were(tokenizer, policy_folder) -> None:
    family, folder = policy_folder
    model = config(family)
    assert same(load_policy(folder, model), new_policy(model, tokenizer, seed=5))
    assert not same(load_policy(folder, model), new_policy(model, tokenizer, seed=6))
    assert sorted(f.suffix for f in folder.iterdir()).count(".safetensors") == 1
    back = load_tokenizer(folder, model)
    assert tokenizer_fingerprint(back) == tokenizer_fingerprint(tokenizer)
    config_ = load_policy(folder, model).config
    assert (config_.vocab_size, config_.max_position_embeddings) == (len(tokenizer), 32)
    assert config_.eos_token_id == tokenizer.eos_token_id != config_.pad_token_id


def test_making_a_model_leaves_the_global_generator_alone(tokenizer) -> None:
    before = torch.get_rng_state()
    new_policy(config("llama"), tokenizer, seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_a_new_head_has_the_papers_spread_and_the_backbone_of_the_policy(policy_folder) -> None:
    """std = 1/√(d + 1), d = 64: 0.124; 20 heads give 1280 numbers, so within 3/√(2·1280) = 6 %."""
    family, folder = policy_folder
    policy = load_policy(folder, config(family))
    scorers = [new_scorer(folder, config(family), seed=i) for i in range(20)]
    heads = torch.cat([s.score.weight.flatten() for s in scorers])
    assert heads.std().item() == pytest.approx(1 / math.sqrt(65), rel=0.06)
    assert scorers[0].score.bias is None
    assert same(scorers[0].base_model, policy.base_model)
    assert same(scorers[0], new_scorer(folder, config(family), seed=0))
    assert not same(scorers[0], scorers[1])
    half = new_scorer(folder, config(family), seed=0, head_scale=0.5)
    torch.testing.assert_close(half.score.weight, scorers[0].score.weight / 2)
    zero = new_scorer(folder, config(family), seed=0, head_scale=0.0)
    assert not zero.score.weight.any()


def test_every_dropout_is_off_until_a_stage_turns_it_on(policy_folder) -> None:
    family, folder = policy_folder
    model = load_policy(folder, config(family)).train()
    ids = torch.arange(10)[None]
    torch.testing.assert_close(model(ids).logits, model(ids).logits)
    assert set_dropout(model, 0.5) == (0 if family == "llama" else 5)  # 1 + 2 in each of 2 layers
    assert torch.equal(model(ids).logits, model(ids).logits) == (family == "llama")
    set_dropout(model, 0.0)
    torch.testing.assert_close(model(ids).logits, model(ids).logits)


def test_dropout_that_is_kept_as_a_number_and_none_of_attention(tokenizer) -> None:
    """OPT's was switched off and never on again."""
    shape = {"model_type": "opt", "hidden_size": 64, "ffn_dim": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "word_embed_proj_dim": 64, "attention_dropout": 0.1}
    model = ModelConfig(name="tiny", architecture=shape, context_length=32)
    opt = new_policy(model, tokenizer, seed=0).train()
    ids = torch.arange(10)[None]
    assert torch.equal(opt(ids).logits, opt(ids).logits)
    assert set_dropout(opt, 0.5) == 3  # the decoder's and one in each of 2 layers
    assert not torch.equal(opt(ids).logits, opt(ids).logits)
    attention = [m for m in opt.modules() if type(m).__name__ == "OPTAttention"]
    assert [m.dropout for m in attention] == [0.0, 0.0]
    shape = {"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 2}
    bloom = ModelConfig(name="tiny", architecture=shape, context_length=32, attention="eager")
    policy = new_policy(bloom, tokenizer, seed=0).train()
    assert set_dropout(policy, 0.5) == 6  # attention, MLP and block of 2 layers
    assert not torch.equal(policy(ids).logits, policy(ids).logits)
    assert {m.p for m in policy.modules() if isinstance(m, nn.Dropout)} == {0.0}  # of attention


def test_dropout_that_layers_read_in_their_config_and_other_noise_of_training(tokenizer) -> None:
    """Falcon's could be switched neither off nor on; OPT left out layers, Mixtral shook what its router saw."""
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    experts = {"intermediate_size": 64, "num_key_value_heads": 2, "num_local_experts": 2}
    noisy = [
        {"model_type": "falcon", "hidden_dropout": 0.3, "attention_dropout": 0.3, "alibi": False},
        {"model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 64, "layerdrop": 0.5},
        {"model_type": "mixtral", **experts, "router_jitter_noise": 0.3},
    ]
    ids = torch.arange(10)[None]
    for own in noisy:
        model = ModelConfig(name="tiny", architecture=shape | own, context_length=32)
        policy = new_policy(model, tokenizer, seed=0).train()
        torch.testing.assert_close(policy(ids).logits, policy(ids).logits)
        if own["model_type"] == "falcon":
            assert policy.config.hidden_dropout == 0.3  # what is exported
            assert set_dropout(policy, 0.5) > 0
            assert not torch.equal(policy(ids).logits, policy(ids).logits)
            assert set_dropout(policy, 0.0) > 0
            torch.testing.assert_close(policy(ids).logits, policy(ids).logits)


def test_random_weights_leave_other_random_numbers_as_they_were(tokenizer) -> None:
    model = config("llama")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    policies = [new_policy(model, tokenizer, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    assert same(policies[0], policies[1])
    assert not same(policies[0], policies[2])


def test_a_head_beside_a_backbone_in_half_precision_is_read_as_it_was_saved(
    policy_folder, tokenizer, tmp_path: Path
) -> None:
    """Rounded to bfloat16 its scores were not those that it was calibrated to."""
    family, folder = policy_folder
    half = replace(config(family), dtype="bfloat16")
    scorer = new_scorer(folder, half, seed=3)
    exact = nn.init.normal_(scorer.score.weight)
    assert not torch.equal(exact.bfloat16().float(), exact)
    for size in ("10GB", "100KB"):  # in one file, in several
        save(scorer, tokenizer, tmp_path / size)
        scorer.save_pretrained(tmp_path / size, max_shard_size=size)
        back = load_scorer(tmp_path / size, half)
        assert torch.equal(back.score.weight, exact)
        assert backbone(back).dtype == torch.bfloat16
    assert (tmp_path / "100KB" / "model.safetensors.index.json").exists()


# of torch's own, where it is imported
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_compile_compiles_what_policies_and_scalar_heads_call(tokenizer, policy_folder) -> None:
    """A scalar head never calls its whole model: compiled was what nobody called."""
    family, folder = policy_folder
    model = replace(config(family), compile=True)
    scorer = new_scorer(folder, model, seed=0)
    policy = load_policy(folder, model)
    reference = compiled(copy.deepcopy(policy), model)
    for module in (policy, scorer, reference, scorer_on(policy, model)):
        assert backbone(module)._compiled_call_impl is not None
    assert backbone(load_policy(folder, config(family)))._compiled_call_impl is None


def test_a_reward_model_keeps_its_bias_and_gain_on_disk(
    tokenizer, policy_folder, tmp_path: Path
) -> None:
    """Loaded again it scores (raw − 0.7) · 2; the stock head of other tools reads raw."""
    family, folder = policy_folder
    scorer = new_scorer(folder, config(family), seed=0).eval()
    ids = torch.randint(6, 200, (4, 9))
    mask = torch.ones_like(ids).bool()
    raw = sequence_scores(scorer, ids, mask)
    scorer.config.reward_bias, scorer.config.reward_gain = 0.7, 2.0
    save(scorer, tokenizer, tmp_path / "reward")
    back = load_scorer(tmp_path / "reward", config(family)).eval()
    assert same(back, scorer)
    torch.testing.assert_close(sequence_scores(back, ids, mask), (raw - 0.7) * 2)
    torch.testing.assert_close(back(ids, attention_mask=mask.long()).logits[:, 0], raw)


def test_what_is_no_model_or_has_too_short_a_context_is_refused(
    policy_folder, tmp_path: Path
) -> None:
    family, folder = policy_folder
    (tmp_path / "empty").mkdir()
    for load in (load_policy, load_scorer, load_tokenizer):
        with pytest.raises(UserError, match=r"model\.path must be a hub id or folder with a model"):
            load(tmp_path / "empty", config(family))
    with pytest.raises(UserError, match=r"model\.context_length must be <= 32, the context of"):
        load_policy(folder, replace(config(family), context_length=64))


def test_a_policy_is_no_reward_model_and_is_refused(policy_folder) -> None:
    family, folder = policy_folder
    with pytest.raises(UserError, match=r"must hold all weights of .*, got none for score\.weight"):
        load_scorer(folder, config(family))


def test_a_value_model_on_the_policys_backbone_says_zero_and_drops_nothing_while_it_trains(
    policy_folder: tuple[str, Path],
) -> None:
    family, folder = policy_folder
    policy = load_policy(folder, config(family))
    value: Any = scorer_on(policy, config(family)).train()
    ids = torch.randint(3, 40, (2, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids).bool()
    assert sequence_scores(value, ids, mask).abs().max() == 0
    nn.init.ones_(value.score.weight)
    assert torch.equal(sequence_scores(value, ids, mask), sequence_scores(value, ids, mask))
    assert same(getattr(value, value.base_model_prefix), getattr(policy, value.base_model_prefix))


def test_a_model_whose_layers_keep_a_state_is_refused(tokenizer) -> None:
    shape = {
        "model_type": "lfm2",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "layer_types": ["conv", "full_attention"],
    }
    model = ModelConfig(name="hybrid", architecture=shape, context_length=32)
    with pytest.raises(UserError, match="attention layers alone, got Lfm2ForCausalLM: it has"):
        new_policy(model, tokenizer, seed=0)


def test_a_scalar_head_is_in_fp32_and_its_scores_are_not_on_the_grid_of_bfloat16(
    policy_folder: tuple[str, Path],
) -> None:
    family, folder = policy_folder
    scorer = new_scorer(folder, replace(config(family), dtype="bfloat16"), seed=0)
    assert backbone(scorer).dtype == torch.bfloat16
    ids = torch.randint(3, 250, (64, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = sequence_scores(scorer, ids, torch.ones_like(ids).bool())
    assert not torch.equal(scores, scores.bfloat16().float())
    assert len(scores.unique()) == 64


def test_an_exported_config_names_the_tokenizers_pad_and_eos(tokenizer, tmp_path: Path) -> None:
    made = new_policy(config("llama"), tokenizer, seed=5)
    made.config.pad_token_id = made.config.eos_token_id = 7  # as others leave it
    made.generation_config.eos_token_id = [7, tokenizer.eos_token_id]
    save(made, tokenizer, tmp_path / "policy")
    back = load_policy(tmp_path / "policy", config("llama"))
    for found in (back.config, back.generation_config):
        assert found.pad_token_id == tokenizer.pad_token_id
    assert back.config.eos_token_id == tokenizer.eos_token_id
    assert back.generation_config.eos_token_id == [7, tokenizer.eos_token_id]  # it stops there too

    scorer = new_scorer(tmp_path / "policy", config("llama"), seed=0)
    scorer.config.pad_token_id = tokenizer.eos_token_id
    save(scorer, tokenizer, tmp_path / "scorer")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "scorer").eval()
    ids = torch.tensor([[5, 6, tokenizer.eos_token_id], [5, tokenizer.eos_token_id, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    assert tokenizer.pad_token_id == 0
    with torch.no_grad():
        expected = stock(input_ids=ids, attention_mask=mask.long()).logits[:, 0]
        torch.testing.assert_close(sequence_scores(scorer.eval(), ids, mask), expected)


def half_downloaded(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:900])


def a_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")


def another_shape(folder: Path) -> None:
    change(folder / "config.json", intermediate_size=48)


def quantised(folder: Path) -> None:
    change(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("harm", [half_downloaded, a_pointer, another_shape, quantised])
@pytest.mark.parametrize("load", [load_policy, lambda p, m: new_scorer(p, m, seed=0)])
def test_weights_that_cannot_be_read_or_trained_are_one_line(
    tokenizer, tmp_path: Path, harm: Any, load: Any
) -> None:
    save(new_policy(config("llama"), tokenizer, seed=5), tokenizer, tmp_path)
    harm(tmp_path)
    with pytest.raises(UserError, match=r"^model\.path must .*got ") as caught:
        load(tmp_path, config("llama"))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_tokenizer_is_one_line(tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"^model\.path must be"):
        load_tokenizer(tmp_path, config("llama"))


def test_an_adapter_is_no_model(tokenizer, tmp_path: Path) -> None:
    base = new_policy(config("llama"), tokenizer, seed=5)
    save(base, tokenizer, tmp_path / "base")
    add_adapter(base, LoRAConfig(rank=2, alpha=4.0), "trained", seed=0)
    save_adapter(base, "trained", tmp_path / "adapter", base=str(tmp_path / "base"))
    (tmp_path / "adapter" / "config.json").write_bytes(
        (tmp_path / "base" / "config.json").read_bytes()
    )
    with pytest.raises(UserError, match=r"an adapter \(merge it into its base first\)$"):
        load_policy(tmp_path / "adapter", config("llama"))


@pytest.mark.parametrize("load", [load_policy, lambda p, m: new_scorer(p, m, seed=0)])
def test_a_longer_context_than_the_models_is_refused_before_its_weights_are_read(
    tokenizer, tmp_path: Path, load: Any
) -> None:
    save(new_policy(config("llama"), tokenizer, seed=5), tokenizer, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"^model\.context_length must be <= 32, .*got 33$"):
        load(tmp_path, replace(config("llama"), context_length=33))


@pytest.mark.parametrize("wrong", [{"hidden_size": 33}, {"hidden_act": "gellu"}])
def test_a_shape_that_no_model_has_is_one_line(tokenizer, wrong: dict[str, Any]) -> None:
    shape = replace(config("llama"), architecture=SHAPES["llama"] | wrong)
    with pytest.raises(UserError, match=r"^model\.architecture must be the shape of a causal LM"):
        new_policy(shape, tokenizer, seed=0)


def test_a_family_without_classifiers_cannot_have_a_value_model_of_its_own(tokenizer) -> None:
    shape = SHAPES["llama"] | {"model_type": "granite"}
    policy = new_policy(replace(config("llama"), architecture=shape), tokenizer, seed=0)
    with pytest.raises(UserError, match=r"^ppo\.value must be shared .*got GraniteForCausalLM"):
        scorer_on(policy, config("llama"))
