"""What the PPO stage hands on."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.harness import only, rlhf_here


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "artifact" / "model.safetensors")


def test_the_artifact_is_the_average_of_the_policy_where_one_is_kept(
    pipeline_outputs: Path, tmp_path: Path
) -> None:
    for name, overrides in (("own", []), ("average", ["ppo.ema_decay=0.75"])):
        short = ["ppo.iterations=1", "logger=none", f"run_dir={tmp_path / name}", *overrides]
        rlhf_here(f"outputs={pipeline_outputs}", "task=ppo", *short)
    before = weights(only(pipeline_outputs / "sft"))
    own, average = (weights(tmp_path / name) for name in ("own", "average"))
    for name, begun in before.items():
        assert (own[name] - begun).abs().max() > 1e-4
        # after the one iteration
        torch.testing.assert_close(average[name], 0.75 * begun + 0.25 * own[name])
