"""Low-rank adapters on the backbone of a transformers model: several by name, one at a time in use.

peft puts its layers into the model in place, so the model stays what it is (`LlamaForCausalLM`, ...) and everything
that runs models runs these too. `AdapterView` and `TrunkScorer` let one backbone in memory be reference, value model
and reward model beside the policy.
Source: Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_lightning.config import LoRAConfig
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.head import ScalarHead
from rlhf_lightning.models.seeding import seeded

FOLDER = "adapter"
"""Where an artifact keeps the adapter that was trained, beside the merged weights."""
TRAINED, VALUE, REFERENCE = "trained", "value", "reference"
"""Names of adapters. `trained` is the one of the stage's model itself, in use unless another is asked for."""
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def backbone(model: nn.Module) -> nn.Module:
    """The model without its head."""
    return getattr(model, model.base_model_prefix)  # type: ignore[arg-type]


BACKBONE_CALL = "call_backbone"
"""Name of the method by which a model that is spread over processes runs its backbone."""


def run_backbone(model: nn.Module, **inputs: Any) -> Any:
    """The outputs of the model without its head."""
    return getattr(model, BACKBONE_CALL, backbone(model))(**inputs)


def add_adapter(model: PreTrainedModel, lora: LoRAConfig, name: str, *, seed: int) -> None:
    """Put a new adapter on the backbone: trainable, without effect yet (B = 0), in use if it is the first.

    Everything that is not an adapter or a scalar head is frozen.
    Raises: UserError if a target is no layer of this model.
    """
    with seeded(seed):
        _inject(model, _settings(model, lora), name)


def _inject(model: PreTrainedModel, settings: LoraConfig, name: str) -> None:
    trunk = backbone(model)
    targets = tuple(settings.target_modules)  # type: ignore[arg-type]
    wanted = {p for p in _linear_paths(trunk) if f".{p}".endswith(tuple(f".{t}" for t in targets))}
    trained = {n for n, p in model.named_parameters() if ".lora_" in n and p.requires_grad}
    active = next((layer.active_adapters for layer in _layers(model)), [name])
    with warnings.catch_warnings():  # a second adapter is what is meant
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        # what it does about experts is told below
        warnings.filterwarnings("ignore", message="The following .*_pattern keys did not match")
        inject_adapter_in_model(settings, trunk, name)
    _require_adapters(trunk, name, wanted)
    mark = _mark(name)
    for parameter_name, parameter in model.named_parameters():
        own = mark.search(parameter_name) is not None
        head = parameter_name.startswith("score.")
        if own:  # small steps would be rounded away in half precision
            parameter.data = parameter.data.float()
        parameter.requires_grad_(own or head or parameter_name in trained)
    for layer in _layers(model):
        _use(layer, active)


def _require_adapters(trunk: nn.Module, name: str, wanted: set[str]) -> None:
    """Raises: UserError if adapter `name` is on other layers than the linear ones that were asked for."""
    layers = {
        path: layer.get_base_layer()
        for path, layer in trunk.named_modules()
        if isinstance(layer, LoraLayer) and name in layer.lora_A
    }
    fused = {path for path, layer in layers.items() if not isinstance(layer, nn.Linear | Conv1D)}
    if wrong := fused | (wanted ^ layers.keys()):
        got, name = min(wrong), type(trunk).__name__
        raise UserError(
            f"lora.targets must be linear layers alone, got {got.rsplit('.', 1)[-1]!r}, which {name} also has in the"
            f' fused weights of its experts ({got}); name those of attention, as in lora.targets="q_proj,v_proj"'
        )


def _settings(model: PreTrainedModel, lora: LoRAConfig) -> LoraConfig:
    paths = _linear_paths(backbone(model))
    own = paths if (text := _text_model(backbone(model))) is None else _below(paths, text)
    there = {path.rsplit(".", 1)[-1] for path in own}
    wanted = there if lora.targets == "all-linear" else {t.strip() for t in lora.targets.split(",")}
    if unknown := sorted(wanted - there):
        raise UserError(
            f"lora.targets must be all-linear or some of {', '.join(sorted(there))}, got {unknown[0]!r}"
        )
    if lora.last_blocks is not None:
        own = _of_last_blocks(own, lora.last_blocks)
    if len(own) < len(paths):  # by name alone they would be found elsewhere, too
        wanted = {p for p in own if p.rsplit(".", 1)[-1] in wanted}
    conv1d = any(isinstance(m, Conv1D) for m in backbone(model).modules())
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=sorted(wanted),
        fan_in_fan_out=conv1d,  # GPT-2 keeps its weights transposed
    )


def _linear_paths(trunk: nn.Module) -> list[str]:
    """The linear layers, whether adapters are on them already or not."""
    return [
        name.removesuffix(".base_layer")
        for name, module in trunk.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and ".lora_" not in f".{name}"
    ]


def _text_model(trunk: nn.Module) -> str | None:
    """Name of the language model in a backbone that has another one (images) beside it; None: it is the backbone."""
    found = {id(module): name for name, module in trunk.named_modules()}
    return found.get(id(trunk.get_decoder())) or None  # type: ignore[operator]


def _below(paths: list[str], name: str) -> list[str]:
    return [path for path in paths if path.startswith(f"{name}.")]


def _of_last_blocks(paths: list[str], number: int) -> list[str]:
    """The layers of the last blocks: what follows the backbone's first list, `layers.11.mlp.fc` is of block 11."""
    block = {p: next((int(part) for part in p.split(".") if part.isdecimal()), None) for p in paths}
    blocks = sorted({index for index in block.values() if index is not None})
    if number > len(blocks):
        raise UserError(f"lora.last_blocks must be at most {len(blocks)}, got {number}")
    return [path for path, index in block.items() if index in blocks[-number:]]


def _layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def has_adapters(model: nn.Module) -> bool:
    """Whether any adapter is on the model."""
    return any(isinstance(module, LoraLayer) for module in model.modules())


def _use(layer: Any, adapters: list[str]) -> None:
    # peft's own switch also turns gradients on and off, which must not happen in the middle of a step
    layer._active_adapter, layer._disable_adapters = adapters, not adapters


@contextmanager
def using(model: nn.Module, name: str | None) -> Iterator[None]:
    """Within it the model is as with adapter `name` alone (None: with all of them off)."""
    layers = _layers(model)
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    for layer in layers:
        _use(layer, [] if name is None else [name])
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


def adapter_state(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """An adapter's parameters under their names without the adapter's own."""
    mark = _mark(name)
    return {
        mark.sub(r"\1.", n): p for n, p in model.named_parameters() if mark.search(n) is not None
    }


def _mark(name: str) -> re.Pattern[str]:
    """What the names of an adapter's parameters have in them; a layer may be called the same."""
    return re.compile(rf"(\.lora_[^.]+)\.{re.escape(name)}\.")


@torch.no_grad()
def copy_adapter(model: nn.Module, source: str, target: str) -> None:
    """Give adapter `target` the numbers of `source`; both have the same layers and rank."""
    numbers = adapter_state(model, source)
    for name, parameter in adapter_state(model, target).items():
        parameter.copy_(numbers[name])


def freeze_adapter(model: nn.Module, name: str) -> None:
    """Keep an adapter as it is."""
    for parameter in adapter_state(model, name).values():
        parameter.requires_grad_(False)


def save_adapter(model: PreTrainedModel, name: str, folder: Path, *, base: str) -> None:
    """An adapter (and the scalar head, if the model has one) as a folder that `peft.PeftModel.from_pretrained` takes.

    `base` is written down as the model that it belongs on.
    """
    prefix = "base_model.model."
    tensors = {prefix + n: p.detach().contiguous() for n, p in adapter_state(model, name).items()}
    settings: Any = backbone(model).peft_config[name]  # type: ignore[index,union-attr]
    written = settings.to_dict() | {
        "base_model_name_or_path": base,
        "inference_mode": True,
        "target_modules": sorted(settings.target_modules),
        "task_type": "CAUSAL_LM",
    }
    head = getattr(model, "score", None)
    if head is not None:
        tensors[f"{prefix}score.weight"] = head.weight.detach().contiguous()
        written |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(written, indent=2, sort_keys=True, default=str)
    (folder / SETTINGS).write_text(text + "\n", encoding="utf-8")


def load_adapter(model: PreTrainedModel, name: str, folder: Path) -> Tensor | None:
    """Put a saved adapter on the model's backbone under `name`, frozen; returns its scalar head (1, d), if it has one.

    Raises: UserError if it is not an adapter for this model.
    """
    known = set(LoraConfig().to_dict())
    written = json.loads((folder / SETTINGS).read_text("utf-8"))
    settings = LoraConfig(**{k: v for k, v in written.items() if k in known and v is not None})
    settings.modules_to_save, settings.inference_mode = None, False
    # that of the run that trained it: the adapter is frozen now, or PPO's, which has none
    settings.lora_dropout = 0.0
    try:
        _inject(model, settings, name)
    except ValueError as error:  # it finds none of the adapter's layers
        raise UserError(
            f"{folder}: must be an adapter for {type(model).__name__} ({error})"
        ) from error
    tensors = load_file(folder / WEIGHTS)
    own = {n.removeprefix("base_model.model."): t for n, t in tensors.items()}
    head = own.pop("score.weight", None)
    there = adapter_state(model, name)
    if own.keys() != there.keys():
        wrong = min(own.keys() ^ there.keys())
        raise UserError(f"{folder}: must be an adapter for {type(model).__name__}, got {wrong!r}")
    with torch.no_grad():
        for parameter_name, parameter in there.items():
            parameter.copy_(own[parameter_name])
    freeze_adapter(model, name)
    return head


@torch.no_grad()
def merge_adapter(model: PreTrainedModel, name: str) -> None:
    """Add adapter `name` to the weights and take every adapter off, in place: a plain model again.

    bfloat16 weights are rounded up or down at random, the same way each time: to the nearest, a sum would be the old
    weight wherever the adapter's part is below half of its last digit, and small updates would be lost.
    """
    trunk = backbone(model)
    for path, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            layer: Any = module
            weight = layer.get_base_layer().weight
            exact = weight.float() + layer.get_delta_weight(name).float()
            weight.copy_(_rounded(exact, weight.dtype, seed=crc32(path.encode())))
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del trunk.peft_config
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def _rounded(exact: Tensor, dtype: torch.dtype, *, seed: int) -> Tensor:
    """fp32 numbers in `dtype`; in bfloat16 each is, on average, what it was."""
    if dtype != torch.bfloat16:
        return exact.to(dtype)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 2**16, exact.shape, dtype=torch.int32, generator=generator)
    # the upper half of the bits is the bfloat16 number below, in size; the noise carries into it by chance
    bits = exact.contiguous().view(torch.int32) + noise.to(exact.device)
    return (bits & -(2**16)).view(torch.float32).to(dtype)


class AdapterView(nn.Module):
    """A causal LM as it is with one adapter on, None: with all off. It owns no parameter."""

    def __init__(self, trunk: PreTrainedModel, adapter: str | None) -> None:
        super().__init__()
        self._trunk = (trunk,)  # not a submodule: its parameters are the policy's
        self.adapter = adapter

    @property
    def trunk(self) -> PreTrainedModel:
        """The model itself."""
        return self._trunk[0]

    @property
    def config(self) -> Any:
        return self.trunk.config

    def forward(self, **kwargs: Any) -> Any:
        with using(self.trunk, self.adapter):
            return self.trunk(**kwargs)


class TrunkScorer(nn.Module):
    """A scalar head on the hidden states of a causal LM's backbone, as they are with `adapter` on.

    Its only submodule is the head: the backbone and the adapters stay the causal LM's. Where `owns_adapter` is set, the
    adapter is trained with the head.
    """

    def __init__(
        self,
        trunk: PreTrainedModel,
        adapter: str | None,
        *,
        head: Tensor | None = None,
        bias: float = 0.0,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self._trunk = (trunk,)
        self.adapter, self.owns_adapter = adapter, False
        config: Any = trunk.config.get_text_config()  # type: ignore[union-attr]
        # a few OPT models project their last state down
        width: int = getattr(config, "word_embed_proj_dim", config.hidden_size)
        self.score = ScalarHead(width, 1, bias=False, device=trunk.device)  # type: ignore[arg-type]
        with torch.no_grad():  # V begins at 0 where nothing better is known
            self.score.weight.copy_(torch.zeros(1, width) if head is None else head)
        self.config = SimpleNamespace(reward_bias=bias, reward_gain=gain)

    @property
    def trunk(self) -> PreTrainedModel:
        """The causal LM."""
        return self._trunk[0]

    def trained(self) -> list[nn.Parameter]:
        """The head, and the adapter where it is this model's own."""
        own = self.owns_adapter and self.adapter is not None
        adapter = adapter_state(self.trunk, str(self.adapter)).values() if own else ()
        return [p for p in (*self.score.parameters(), *adapter) if p.requires_grad]

    def run(self, **inputs: Any) -> Any:
        """The backbone's outputs."""
        with using(self.trunk, self.adapter):
            return run_backbone(self.trunk, **inputs)


def in_use(model: nn.Module) -> AbstractContextManager[None]:
    """Within it the backbone is as this model's own passes see it."""
    return using(model.trunk, model.adapter) if isinstance(model, TrunkScorer) else nullcontext()
