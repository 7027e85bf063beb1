"""What a model is: its size, its family, its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlhf_lightning.config.checks import MISSING, require


@dataclass
class ModelConfig:
    """Size and family of a model. Weights come from `path`, or are random with the shape of `architecture`."""

    name: str = MISSING
    """Short name, used in run names."""
    path: str | None = None
    """Hub id or folder with safetensors; None builds a random model from `architecture`."""
    revision: str | None = None
    """Branch, tag or commit of the hub; null: the newest, whatever it is by then."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Keys of the transformers config of `model_type` (its own key `model_type` included)."""
    vocab_size: int = 768
    """Size of the byte-level BPE that is trained on the mix's text where `path` is None; model=nano has 512."""
    context_length: int = 128
    """Tokens of prompt and response together that the model may see; every preset sets its own."""
    dtype: str = "float32"
    """Dtype of the weights: float32 | bfloat16; adapters are always fp32. Default: fp32, where Adam's small steps are
    not rounded away; trainer.precision=bf16-mixed computes in bf16 and keeps fp32 weights. bfloat16 is for weights
    that stay frozen."""
    attention: str = "sdpa"
    """transformers' attn_implementation: sdpa | eager (packed rows have a mask of their own, which others do not take).
    Default: the faster one; some families (Gemma 2, Bloom) have eager alone, and say so."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass in place of keeping them; gradients stay the same."""
    compile: bool = False
    """torch.compile the backbone, but for passes with a cache (sampling). Pays where shapes repeat; needs a C++
    compiler on CPU."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Off unless you turn it on."""

    def __post_init__(self) -> None:
        require(
            self.dtype in ("float32", "bfloat16"),  # fp16 would need a loss scale
            "model.dtype",
            "one of float32, bfloat16",
            self.dtype,
        )
        require(
            self.attention in ("sdpa", "eager"),
            "model.attention",
            "one of sdpa, eager",
            self.attention,
        )
        require(self.context_length >= 8, "model.context_length", ">= 8", self.context_length)
        require(
            self.vocab_size >= 300,
            "model.vocab_size",
            ">= 300 (256 bytes and the special tokens)",
            self.vocab_size,
        )
        require(
            self.path is None or not self.architecture,
            "model.path",
            "null where model.architecture has a shape of its own (say model=hf model.path=...)",
            self.path,
        )
        require(
            self.path is not None or "model_type" in self.architecture,
            "model.path",
            "a hub id or folder where model.architecture.model_type is absent",
            self.path,
        )
