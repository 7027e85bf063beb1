"""Making, loading and saving causal LMs, scalar-head models and their tokenizers.

Weights are read from safetensors only; code that comes with a model runs only where `model.trust_remote_code` says so.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from rlhf_lightning.config import ModelConfig
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.adapters import backbone
from rlhf_lightning.models.head import ScalarHead
from rlhf_lightning.models.packing import beside_attention

Model = TypeVar("Model", bound=nn.Module)

disable_progress_bar()  # one bar a run: the stage's own
set_verbosity_error()  # what it would only warn of, weights that a folder lacks, is refused below
if (
    not torch.cuda.is_available()
):  # transformers imports DeepSpeed to save a model, and DeepSpeed warns of a missing GPU
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _options(model: ModelConfig) -> dict[str, Any]:
    return {
        "dtype": getattr(torch, model.dtype),
        "attn_implementation": model.attention,
        "trust_remote_code": model.trust_remote_code,
    }


@contextmanager
def _refusing(path: str | Path) -> Iterator[None]:
    """What transformers says of a folder or hub id that it cannot load, as the user's error."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"model.path must be a hub id or folder with a model, got {str(path)!r} ({reason})"
        ) from error


def _loaded(
    kind: Any, path: str | Path, model: ModelConfig, *, new: tuple[str, ...] = (), **options: Any
) -> PreTrainedModel:
    """`kind.from_pretrained`, from safetensors only.

    Raises: UserError if there is no such model, or weights other than those under `new` would be left random.
    """
    with _refusing(path):
        module, report = kind.from_pretrained(
            path,
            use_safetensors=True,
            revision=model.revision,
            output_loading_info=True,
            **_options(model),
            **options,
        )
    missing = sorted(k for k in report["missing_keys"] if not k.startswith(new or ("\0",)))
    if missing:
        raise UserError(
            f"{path}: the folder must hold all weights of {type(module).__name__}, got none for {missing[0]}"
            + (f" and {len(missing) - 1} others" if len(missing) > 1 else "")
        )
    return module


def load_tokenizer(path: str | Path, model: ModelConfig) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder or hub id.

    Raises: UserError if there is none.
    """
    with _refusing(path):
        return AutoTokenizer.from_pretrained(
            path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )


def load_policy(path: str | Path, model: ModelConfig) -> PreTrainedModel:
    """A causal LM from a folder or hub id.

    Raises: UserError if there is none, it has other layers than attention, or its context is shorter than
    `model.context_length`.
    """
    policy = _loaded(AutoModelForCausalLM, path, model)
    _require_attention(policy)
    longest = getattr(policy.config, "max_position_embeddings", None)
    if longest is not None and model.context_length > longest:
        raise UserError(
            f"model.context_length must be <= {longest}, the context of {path}, got {model.context_length}"
        )
    return prepare(policy, model)


def new_policy(
    model: ModelConfig, tokenizer: PreTrainedTokenizerFast, *, seed: int
) -> PreTrainedModel:
    """The model's own weights: those of `model.path`, or random ones of `model.architecture`."""
    if model.path is not None:
        return grow_embeddings(load_policy(model.path, model), tokenizer)
    config = _architecture(model, tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = AutoModelForCausalLM.from_config(config, **_options(model))
    _require_attention(policy)
    return prepare(policy, model)


def _require_attention(policy: PreTrainedModel) -> None:
    # sampling takes rows out of the cache, which a state of another kind has no way to do
    reason = beside_attention(policy)
    if reason is not None:
        name = type(policy).__name__
        raise UserError(f"model must be one of attention layers alone, got {name}: {reason}")


def _architecture(model: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> Any:
    shape = dict(model.architecture)
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    config.vocab_size = len(tokenizer)
    config.max_position_embeddings = model.context_length
    config.bos_token_id, config.eos_token_id, config.pad_token_id = (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    return config


def new_scorer(
    path: str | Path, model: ModelConfig, *, seed: int, head_scale: float = 1.0
) -> PreTrainedModel:
    """A scalar-head model whose backbone is the policy at `path`; head ~ head_scale · N(0, 1/√(d+1)), no bias [S]."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind = AutoModelForSequenceClassification
        scorer = _loaded(kind, path, model, new=("score.",), num_labels=1)
        head: Any = scorer.score
        nn.init.normal_(head.weight, std=head_scale / math.sqrt(head.weight.shape[1] + 1))
    return prepare(scorer, model)


def scorer_on(policy: PreTrainedModel, model: ModelConfig) -> PreTrainedModel:
    """A scalar-head model with a copy of the policy's backbone, whose score is 0."""
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    scorer = AutoModelForSequenceClassification.from_config(config, **_options(model))
    backbone(scorer).load_state_dict(backbone(policy).state_dict())
    nn.init.zeros_(scorer.score.weight)
    return prepare(scorer, model)


def load_scorer(path: str | Path, model: ModelConfig) -> PreTrainedModel:
    """A trained scalar-head model; its bias and gain come with its config."""
    scorer = _loaded(AutoModelForSequenceClassification, path, model)
    if scorer.config.num_labels != 1:
        raise UserError(f"{path}: a reward model has one label, got {scorer.config.num_labels}")
    return prepare(scorer, model)


def grow_embeddings(module: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Room for the tokens that `prepare_tokenizer` added to a model of other making; the same in every copy."""
    if len(tokenizer) > module.get_input_embeddings().num_embeddings:  # type: ignore[operator]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module.resize_token_embeddings(len(tokenizer))
    return module


def prepare(module: PreTrainedModel, model: ModelConfig) -> PreTrainedModel:
    """Every dropout off (a stage that wants it turns it on), a scalar head in fp32, checkpointing of activations."""
    set_dropout(module, 0.0)
    if isinstance(head := getattr(module, "score", None), nn.Linear):
        module.score = ScalarHead.of(head)
    elif isinstance(head, nn.Module):  # of other making
        head.float()
    for part in module.modules():  # some layers keep the probability as a number (attention, OPT)
        for name, value in list(vars(part).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(part, name, 0.0)
    if model.gradient_checkpointing:
        # not the reentrant kind: this one also works where the inputs of a frozen backbone carry no gradient
        kind = {"use_reentrant": False}
        if hasattr(module, "activation_checkpointing_enable"):
            module.activation_checkpointing_enable(kind)
        else:  # its name in earlier transformers
            module.gradient_checkpointing_enable(kind)
    if model.compile:
        module.compile()
    return module


def set_dropout(module: nn.Module, probability: float) -> int:
    """Set every dropout layer but those of adapters, which have a setting of their own; returns how many there are."""
    layers = [
        m
        for name, m in module.named_modules()
        if isinstance(m, nn.Dropout) and "lora_dropout" not in name
    ]
    for layer in layers:
        layer.p = probability
    return len(layers)


def frozen(module: Model) -> Model:
    """The model in evaluation mode, without gradients."""
    return module.eval().requires_grad_(False)


def placed(module: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model, moved to a device."""
    nn.Module.to(
        module, device
    )  # transformers' own `to` is this, with a signature that types cannot read
    return module


def save(module: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """A Hugging Face folder with safetensors weights and the tokenizer with its chat template."""
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def parameters_of(module: nn.Module) -> int:
    """Number of parameters, whether they are here or spread over processes."""
    return sum(numbers_of(p) for p in module.parameters())


def numbers_of(parameter: nn.Parameter) -> int:
    """Numbers of a weight; ZeRO-3 leaves an empty tensor where it has spread one."""
    return getattr(parameter, "ds_numel", parameter.numel())
