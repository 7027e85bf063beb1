"""The README.md of an artifact, in the form that model hubs read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

WHAT = {
    "pretrain": "A causal language model, pretrained on raw text.",
    "sft": "A policy after supervised fine-tuning on demonstrations.",
    "reward": "A reward model: one score for a prompt with its response, higher is better.",
    "ppo": "A policy after PPO against a reward model.",
}

LOAD = """```python
from transformers import AutoTokenizer, {loader}

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = {loader}.from_pretrained("path/to/this/folder")
```"""


def model_card(manifest: Mapping[str, Any], *, how_to_load: str) -> str:
    """Markdown: what the model is, its parents, its metrics, how to load it, its config."""
    stage, sha256 = manifest["stage"], manifest["sha256"]
    commit = manifest["git_commit"] or "unknown"
    parents = [
        f"- {role}: artifact `{parent[:12]}`" for role, parent in manifest["parents"].items()
    ]
    metrics = [
        f"| {name} | {_number(value)} |" for name, value in sorted(manifest["metrics"].items())
    ]
    parts = [
        f"---\nlibrary_name: transformers\ntags:\n- rlhf-lightning\n- {stage}\n---",
        f"# {stage}\n\n{WHAT.get(stage, f'A model of stage {stage}.')}",
        f"Made by rlhf_lightning on {manifest['created']}, commit {commit}; sha256 `{sha256}`.",
        "## Parents\n\n"
        + ("\n".join(parents) or "None: it was trained from the model's own weights."),
        "## Metrics\n\n"
        + ("\n".join(["| metric | value |", "|---|---|", *metrics]) if metrics else "None."),
        "## How to load\n\n" + LOAD.format(loader=how_to_load),
        "## Config\n\n```json\n"
        + json.dumps(manifest["config"], indent=2, ensure_ascii=False)
        + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
