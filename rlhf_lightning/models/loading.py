"""Making, loading and saving causal LMs, scalar-head models and their tokenizers.

Weights are read from safetensors only; code that comes with a model runs only where `model.trust_remote_code` says so.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.initialization import no_init_weights
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.logging import disable_progress_bar, set_verbosity_error
from transformers.utils.peft_utils import find_adapter_config_file

from rlhf_lightning.config import ModelConfig
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.adapters import backbone
from rlhf_lightning.models.dropout import without_noise
from rlhf_lightning.models.head import ScalarHead
from rlhf_lightning.models.packing import beside_attention
from rlhf_lightning.models.seeding import seeded
from rlhf_lightning.models.tokens import eos_id, pad_id

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


# a broken file, an unknown kind, a shape that does not fit, a package that a quantised model needs
_UNUSABLE = (OSError, ValueError, KeyError, ImportError, RuntimeError)
_UNUSABLE += (SafetensorError, StrictDataclassError)


@contextmanager
def refusing(rule: str) -> Iterator[None]:
    """What transformers says of what it cannot read or make, as the user's error that begins with `rule`."""
    try:
        yield
    except UserError:
        raise
    except _UNUSABLE as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise  # no mistake of the user's: the same command may do elsewhere
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = lines[: 2 if lines and lines[0].endswith(":") else 1]
        reason = " ".join(said) or type(error).__name__
        hint = "; model.attention=eager may do" if "scaled_dot_product" in reason else ""
        raise UserError(f"{rule} ({reason}{hint})") from error


def _refusing(path: str | Path) -> AbstractContextManager[None]:
    return refusing(f"model.path must be a hub id or folder with a model, got {str(path)!r}")


def require_trainable(path: str | Path, config: Any) -> None:
    """Raises: UserError for weights that are stored in fewer bits than a float: nothing can be added to them."""
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(
            f"model.path must have weights in fp32, bf16 or fp16, got {str(path)!r} with quantised ones"
        )


def context_of(config: Any) -> int | None:
    """Tokens that a model's positions reach; None: its config does not say."""
    text = config.get_text_config()
    return getattr(text, "max_position_embeddings", getattr(text, "n_positions", None))


def _loaded(
    kind: Any, path: str | Path, model: ModelConfig, *, new: tuple[str, ...] = (), **options: Any
) -> PreTrainedModel:
    """`kind.from_pretrained`, from safetensors only.

    Raises: UserError if there is no such model, it is an adapter or quantised, its context is shorter than
    `model.context_length`, or weights other than those under `new` would be left random.
    """
    code = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    with _refusing(path):
        if find_adapter_config_file(str(path), revision=model.revision) is not None:
            raise UserError(
                f"model.path must be a model, got {str(path)!r}, an adapter (merge it into its base first)"
            )
        config = AutoConfig.from_pretrained(path, **code)
        require_trainable(path, config)
        longest = context_of(config)
        if longest is not None and model.context_length > longest:
            raise UserError(
                f"model.context_length must be <= {longest}, the context of {path}, got {model.context_length}"
            )
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

    Raises: UserError if there is none, or none of the tokenizers library.
    """
    with _refusing(path):
        found = AutoTokenizer.from_pretrained(
            path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    if not hasattr(found, "backend_tokenizer"):
        raise UserError(
            f"model.path must have a tokenizer.json, got {str(path)!r} with a {type(found).__name__}"
        )
    return found


def load_policy(path: str | Path, model: ModelConfig) -> PreTrainedModel:
    """A causal LM from a folder or hub id.

    Raises: UserError if there is none, it cannot be trained here, or its context is shorter than
    `model.context_length`.
    """
    policy = _loaded(AutoModelForCausalLM, path, model)
    _require_attention(policy)
    return prepare(policy, model)


def new_policy(
    model: ModelConfig, tokenizer: PreTrainedTokenizerFast, *, seed: int
) -> PreTrainedModel:
    """The model's own weights: those of `model.path`, or random ones of `model.architecture`."""
    if model.path is not None:
        return grow_embeddings(load_policy(model.path, model), tokenizer)
    rule = f"model.architecture must be the shape of a causal LM, got {model.architecture}"
    with seeded(seed), refusing(rule):
        config = _architecture(model, tokenizer)
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
    with seeded(seed):
        kind = AutoModelForSequenceClassification
        scorer = _loaded(kind, path, model, new=("score.",), num_labels=1)
        head: Any = scorer.score
        nn.init.normal_(head.weight, std=head_scale / math.sqrt(head.weight.shape[1] + 1))
    return prepare(scorer, model)


def scorer_on(policy: PreTrainedModel, model: ModelConfig) -> PreTrainedModel:
    """A scalar-head model with a copy of the policy's backbone, whose score is 0.

    Raises: UserError if transformers has no such model of this family.
    """
    config = copy.deepcopy(policy.config)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(
            "ppo.value must be shared (or ppo.advantage=rloo) where transformers has no sequence classifier of a"
            f" family, got {type(policy).__name__}"
        )
    config.num_labels = 1
    with no_init_weights():
        scorer = AutoModelForSequenceClassification.from_config(config, **_options(model))
    backbone(scorer).load_state_dict(backbone(policy).state_dict())
    nn.init.zeros_(scorer.score.weight)
    return prepare(scorer, model)


def load_scorer(path: str | Path, model: ModelConfig) -> PreTrainedModel:
    """A trained scalar-head model of this project, from its folder; bias and gain come with its config."""
    scorer = _loaded(AutoModelForSequenceClassification, path, model)
    if scorer.config.num_labels != 1:
        raise UserError(f"{path}: a reward model has one label, got {scorer.config.num_labels}")
    if not isinstance(head := getattr(scorer, "score", None), nn.Linear):
        raise UserError(
            f"{path}: a reward model's head must be a linear layer `score`, got {type(head).__name__}"
        )
    # a head is fp32 beside a backbone in half precision: rounded, it would give other scores than it was calibrated to
    with safe_open(_file_of("score.weight", Path(path)), framework="pt") as weights:
        head.weight.data = weights.get_tensor("score.weight")
    return prepare(scorer, model)


def _file_of(weight: str, folder: Path) -> Path:
    """The file of a model's folder that has a weight; a large model has several."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.exists():
        return folder / SAFE_WEIGHTS_NAME
    return folder / json.loads(index.read_text("utf-8"))["weight_map"][weight]


def grow_embeddings(module: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Room for the tokens that `prepare_tokenizer` added to a model of other making; the same in every copy."""
    if len(tokenizer) > module.get_input_embeddings().num_embeddings:  # type: ignore[operator]
        with seeded(0):
            module.resize_token_embeddings(len(tokenizer))
    return module


def prepare(module: PreTrainedModel, model: ModelConfig) -> PreTrainedModel:
    """Every dropout off (a stage that wants it turns it on), a scalar head in fp32, checkpointing of activations."""
    if isinstance(head := getattr(module, "score", None), nn.Linear):
        module.score = ScalarHead.of(head)
    without_noise(module)
    if model.gradient_checkpointing:
        # not the reentrant kind: this one also works where the inputs of a frozen backbone carry no gradient
        kind = {"use_reentrant": False}
        if hasattr(module, "activation_checkpointing_enable"):
            module.activation_checkpointing_enable(kind)
        else:  # its name in earlier transformers
            module.gradient_checkpointing_enable(kind)
    return compiled(module, model)


def compiled(module: PreTrainedModel, model: ModelConfig) -> PreTrainedModel:
    """The model, its backbone compiled where `model.compile` says so: what policies and scalar heads alike call.

    A deep copy of it must be compiled again.
    """
    if model.compile:
        backbone(module).compile()
    return module


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
    tell_special_tokens(module, tokenizer)
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tell_special_tokens(module: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write into the model's configs what its tokenizer pads with and ends with.

    Other tools look there: for the token whose score is the text's, and for where to stop.
    """
    config = module.config
    for found in (config, config.get_text_config(), getattr(module, "generation_config", None)):  # type: ignore[union-attr]
        if found is None:
            continue
        ends = getattr(found, "eos_token_id", None)
        found.pad_token_id = pad_id(tokenizer)
        if eos_id(tokenizer) not in (ends if isinstance(ends, list) else [ends]):
            found.eos_token_id = eos_id(tokenizer)


def parameters_of(module: nn.Module) -> int:
    """Number of parameters, whether they are here or spread over processes."""
    return sum(numbers_of(p) for p in module.parameters())


def numbers_of(parameter: nn.Parameter) -> int:
    """Numbers of a weight; ZeRO-3 leaves an empty tensor where it has spread one."""
    return getattr(parameter, "ds_numel", parameter.numel())
