"""Adapters: no effect at first, apart from each other, the same after merging, and readable by peft alone."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SiglipVisionConfig,
)

from rlhf_lightning.config import LoRAConfig
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.adapters import (
    AdapterView,
    TrunkScorer,
    adapter_state,
    add_adapter,
    copy_adapter,
    freeze_adapter,
    has_adapters,
    load_adapter,
    merge_adapter,
    save_adapter,
    using,
)
from rlhf_lightning.models.dropout import set_dropout
from rlhf_lightning.models.forward import response_logits, sequence_scores, token_values
from rlhf_lightning.models.loading import context_of, tell_special_tokens
from rlhf_lightning.models.packing import attention_window
from rlhf_lightning.models.shared_prompt import response_scores_by_cache
from tests.stages.tiny_ppo import tokenizer
from tests.tiny import tiny_policy, tiny_scorer

LORA = LoRAConfig(rank=2, alpha=4.0)
FAMILIES = ("llama", "gpt2")


def sequence(rows: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    prompts = torch.randint(3, 40, (rows, 4), generator=generator)
    responses = torch.randint(3, 40, (rows, 5), generator=generator)
    prompt_mask, response_mask = torch.ones(rows, 4).bool(), torch.ones(rows, 5).bool()
    prompt_mask[0, :2] = False  # left-padded
    return prompts, prompt_mask, responses, response_mask


def disturb(model: nn.Module, name: str, seed: int = 0) -> None:
    """Numbers that do something: a new adapter's B is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_state(model, name).values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained(family: str) -> None:
    policy = tiny_policy(family=family)
    plain = response_logits(policy, *sequence())
    add_adapter(policy, LORA, "policy", seed=0)
    torch.testing.assert_close(response_logits(policy, *sequence()), plain, rtol=0, atol=0)
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name and ".policy." in name for name in trained)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_the_adapter_off_the_policy_is_the_frozen_copy(family: str) -> None:
    policy = tiny_policy(family=family)
    frozen = copy.deepcopy(policy)
    add_adapter(policy, LORA, "policy", seed=0)
    disturb(policy, "policy")
    reference = AdapterView(policy, None)
    expected = response_logits(frozen, *sequence())
    torch.testing.assert_close(response_logits(reference, *sequence()), expected, rtol=0, atol=0)
    assert not torch.allclose(response_logits(policy, *sequence()), expected)


def test_adapters_do_not_see_each_other() -> None:
    policy = tiny_policy()
    add_adapter(policy, LORA, "policy", seed=0)
    disturb(policy, "policy", seed=1)
    alone = response_logits(policy, *sequence())
    add_adapter(policy, LORA, "value", seed=2)
    disturb(policy, "value", seed=3)
    torch.testing.assert_close(response_logits(policy, *sequence()), alone, rtol=0, atol=0)
    with using(policy, "value"):
        assert not torch.allclose(response_logits(policy, *sequence()), alone)
    torch.testing.assert_close(response_logits(policy, *sequence()), alone, rtol=0, atol=0)


def test_the_gradient_goes_to_the_adapter_in_use_and_to_its_head() -> None:
    policy = tiny_policy()
    add_adapter(policy, LORA, "policy", seed=0)
    add_adapter(policy, LORA, "value", seed=1)
    value = TrunkScorer(policy, "value", head=torch.ones(1, 32))
    token_values(value, *sequence()).sum().backward()
    assert value.score.weight.grad is not None
    assert all(p.grad is None for p in adapter_state(policy, "policy").values())
    assert any(p.grad is not None and p.grad.any() for p in adapter_state(policy, "value").values())
    assert all(p.requires_grad for p in adapter_state(policy, "policy").values())


def test_a_copied_adapter_does_the_same_and_a_frozen_one_is_not_trained() -> None:
    policy = tiny_policy()
    add_adapter(policy, LORA, "policy", seed=0)
    add_adapter(policy, LORA, "reference", seed=1)
    freeze_adapter(policy, "reference")
    disturb(policy, "policy")
    copy_adapter(policy, "policy", "reference")
    torch.testing.assert_close(
        response_logits(AdapterView(policy, "reference"), *sequence()),
        response_logits(policy, *sequence()),
        rtol=0,
        atol=0,
    )
    assert not any(p.requires_grad for p in adapter_state(policy, "reference").values())


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_keeps_the_function_and_leaves_a_plain_model(family: str) -> None:
    policy = tiny_policy(family=family)
    names = set(policy.state_dict())
    add_adapter(policy, LORA, "policy", seed=0)
    add_adapter(policy, LORA, "value", seed=0)
    disturb(policy, "policy")
    disturb(policy, "value", seed=9)
    before = response_logits(policy, *sequence())
    merge_adapter(policy, "policy")
    torch.testing.assert_close(response_logits(policy, *sequence()), before, rtol=1e-5, atol=1e-5)
    assert not has_adapters(policy)
    assert set(policy.state_dict()) == names


@pytest.mark.parametrize("share", [0.02, 0.2, 3.0])
def test_updates_below_the_last_digit_of_bfloat16_are_merged_on_average(share: float) -> None:
    policy = tiny_policy().to(torch.bfloat16)
    before = {n: p.detach().float().clone() for n, p in policy.named_parameters()}
    add_adapter(policy, LORA, "policy", seed=0)
    disturb(policy, "policy")
    last_digit = 2.0**-9 * 0.2  # of a weight of usual size: tiny_policy's are about 0.2
    with torch.no_grad():
        for name, parameter in adapter_state(policy, "policy").items():
            if "lora_B" in name:
                parameter.mul_(share * last_digit / 0.16)
    deltas = {
        f"model.{path}.weight": layer.get_delta_weight("policy")
        for path, layer in policy.model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    merge_adapter(policy, "policy")
    after = dict(policy.named_parameters())
    moved = torch.cat([(after[n].detach().float() - before[n]).flatten() for n in deltas])
    wanted = torch.cat([delta.detach().flatten() for delta in deltas.values()])
    kept = (moved @ wanted) / (wanted @ wanted)
    assert kept == pytest.approx(1.0, abs=0.3 if share < 0.1 else 0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_adapter_loads_with_peft_alone(family: str, tmp_path: Path) -> None:
    policy = tiny_policy(family=family)
    base = copy.deepcopy(policy)
    add_adapter(policy, LORA, "policy", seed=0)
    disturb(policy, "policy")
    save_adapter(policy, "policy", tmp_path, base="the-base")
    loaded = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    ids = sequence()[2]
    torch.testing.assert_close(loaded(input_ids=ids).logits, policy(input_ids=ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_reward_adapter_has_its_head(family: str, tmp_path: Path) -> None:
    scorer = tiny_scorer(family=family)
    base = copy.deepcopy(scorer)
    add_adapter(scorer, LORA, "reward", seed=0)
    assert scorer.score.weight.requires_grad
    disturb(scorer, "reward")
    with torch.no_grad():
        scorer.score.weight.add_(0.5)
    save_adapter(scorer, "reward", tmp_path, base="the-base")
    ids = sequence()[2]
    mask = torch.ones_like(ids).bool()
    expected = sequence_scores(scorer, ids, mask)
    loaded = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits[:, 0], expected)


def test_a_reward_adapter_on_the_policys_backbone_scores_as_the_whole_reward_model(
    tmp_path: Path,
) -> None:
    policy, scorer = tiny_policy(), tiny_scorer()
    scorer.model.load_state_dict(policy.model.state_dict())  # the reward model began as this policy
    add_adapter(scorer, LORA, "reward", seed=0)
    disturb(scorer, "reward")
    save_adapter(scorer, "reward", tmp_path, base="the-base")
    add_adapter(policy, LORA, "policy", seed=1)
    disturb(policy, "policy", seed=2)
    head = load_adapter(policy, "reward", tmp_path)
    shared = TrunkScorer(policy, "reward", head=head, bias=0.25, gain=2.0)
    ids, mask = sequence()[2], sequence()[3]
    expected = (sequence_scores(scorer, ids, mask) - 0.25) * 2
    torch.testing.assert_close(sequence_scores(shared, ids, mask), expected)
    prompts, prompt_mask, responses, response_mask = sequence()
    whole = torch.cat([prompts, responses], 1), torch.cat([prompt_mask, response_mask], 1)
    torch.testing.assert_close(
        response_scores_by_cache(shared, *sequence()), sequence_scores(shared, *whole)
    )
    assert not any(p.requires_grad for p in adapter_state(policy, "reward").values())


def test_a_value_head_without_a_start_says_zero() -> None:
    policy = tiny_policy()
    value = TrunkScorer(policy, None)
    assert token_values(value, *sequence()).abs().max() == 0
    assert [name for name, _ in value.named_parameters()] == ["score.weight"]


def test_an_adapter_for_another_model_is_refused(tmp_path: Path) -> None:
    policy = tiny_policy()
    add_adapter(policy, LoRAConfig(rank=2, targets="q_proj"), "policy", seed=0)
    save_adapter(policy, "policy", tmp_path, base="the-base")
    with pytest.raises(UserError, match=r"must be an adapter for GPT2LMHeadModel"):
        load_adapter(tiny_policy(family="gpt2"), "policy", tmp_path)


def test_a_target_that_is_no_layer_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"lora\.targets must be all-linear or some of .*q_proj.*'qq'"
    ):
        add_adapter(tiny_policy(), LoRAConfig(targets="q_proj,qq"), "policy", seed=0)


def test_adapters_on_half_precision_weights_are_fp32_and_dropout_is_their_own() -> None:
    policy = tiny_policy().to(torch.bfloat16)  # type: ignore[arg-type]
    add_adapter(policy, LoRAConfig(rank=2, dropout=0.25), "policy", seed=0)
    assert {p.dtype for p in adapter_state(policy, "policy").values()} == {torch.float32}
    set_dropout(policy, 0.0)
    kept = [m.p for n, m in policy.named_modules() if n.endswith("lora_dropout.policy")]
    assert kept and set(kept) == {0.25}
    assert response_logits(policy, *sequence()).dtype == torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_on_the_last_blocks_alone(family: str, tmp_path: Path) -> None:
    policy = tiny_policy(family=family)
    number = len(blocks := block_numbers(n for n, _ in policy.named_modules()))
    add_adapter(policy, LoRAConfig(rank=2, last_blocks=1), "policy", seed=0)
    assert block_numbers(adapter_state(policy, "policy")) == {max(blocks)}
    save_adapter(policy, "policy", tmp_path, base="the-base")
    other = tiny_policy(family=family)
    load_adapter(other, "policy", tmp_path)
    assert adapter_state(other, "policy").keys() == adapter_state(policy, "policy").keys()
    expected = rf"lora\.last_blocks must be at most {number}, got {number + 1}"
    with pytest.raises(UserError, match=expected):
        add_adapter(
            tiny_policy(family=family), LoRAConfig(last_blocks=number + 1), "policy", seed=0
        )


def block_numbers(names: Iterable[str]) -> set[int]:
    """The blocks that modules or parameters belong to."""
    return {int(found[1]) for name in names if (found := re.search(r"\.(\d+)\.", name))}


def test_block_one_of_twelve_is_not_taken_for_block_eleven(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=12,
        num_attention_heads=2,
    )
    policy = LlamaForCausalLM(config)
    add_adapter(policy, LoRAConfig(rank=2, targets="q_proj", last_blocks=11), "policy", seed=0)
    assert block_numbers(adapter_state(policy, "policy")) == set(range(1, 12))
    save_adapter(policy, "policy", tmp_path, base="the-base")
    loaded = PeftModel.from_pretrained(LlamaForCausalLM(config), str(tmp_path))
    found = {name for name, _ in loaded.named_parameters() if ".lora_A." in name}
    assert len(found) == 11 and block_numbers(found) == set(range(1, 12))


def test_layers_whose_names_are_also_those_of_fused_experts_are_refused() -> None:
    config = Qwen3MoeConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=16,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=2,
        mlp_only_layers=[0],
    )
    with pytest.raises(UserError, match=r"^lora\.targets must be linear layers alone, got 'down_"):
        add_adapter(Qwen3MoeForCausalLM(config), LORA, "trained", seed=0)
    attention = LoRAConfig(rank=2, alpha=4.0, targets="q_proj,v_proj")
    model = Qwen3MoeForCausalLM(config)
    add_adapter(model, attention, "trained", seed=0)
    assert len(adapter_state(model, "trained")) == 8
    merge_adapter(model, "trained")


def text_and_images() -> Gemma3ForConditionalGeneration:
    """A model of text with one of images beside it, whose layers have the same names."""
    torch.manual_seed(0)
    text = Gemma3TextConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
        max_position_embeddings=64,
    )
    images = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=images))


@pytest.mark.parametrize("last_blocks", [None, 1])
def test_a_model_of_text_and_images_has_adapters_on_its_text_model(last_blocks: int | None) -> None:
    model = text_and_images()
    add_adapter(model, replace(LORA, last_blocks=last_blocks), "trained", seed=0)
    names = [name for name in adapter_state(model, "trained") if "lora_A" in name]
    assert len(names) == 7 * (last_blocks or 2)
    assert all(".language_model." in name for name in names)


def test_what_is_said_of_the_text_model_is_read_where_images_stand_beside_it() -> None:
    model = text_and_images()
    assert attention_window(model.config) == 8
    assert context_of(model.config) == 64
    assert TrunkScorer(model, None).score.in_features == 16


def test_a_layer_may_be_called_like_an_adapter() -> None:
    model = BertLMHeadModel(
        BertConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            is_decoder=True,
        )
    )
    only = replace(LORA, targets="query,value")
    add_adapter(model, only, "trained", seed=0)
    add_adapter(model, only, "value", seed=0)
    trained, value = adapter_state(model, "trained"), adapter_state(model, "value")
    assert trained.keys() == value.keys()
    assert len(value) == 4
    assert not {id(p) for p in trained.values()} & {id(p) for p in value.values()}


def test_an_adapter_is_read_without_the_dropout_that_it_was_trained_with(tmp_path: Path) -> None:
    model = tiny_policy()
    add_adapter(model, replace(LORA, dropout=0.5), "trained", seed=0)
    save_adapter(model, "trained", tmp_path, base="x")
    other = tiny_policy()
    load_adapter(other, "value", tmp_path)
    dropouts = [m for n, m in other.named_modules() if n.endswith("lora_dropout.value")]
    assert dropouts
    assert not any(isinstance(m, nn.Dropout) and m.p > 0 for m in dropouts)


def test_special_tokens_are_told_where_a_config_is_in_two_parts() -> None:
    model, reads = text_and_images(), tokenizer()
    tell_special_tokens(model, reads)
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        assert (config.pad_token_id, config.eos_token_id) == (reads.pad_token_id, 2)
