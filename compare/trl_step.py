"""One optimizer step of a trl trainer that is a transformers Trainer, watched at its backward passes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor
from transformers import Trainer

from compare.trl_ppo import gradients


@dataclass
class Step:
    losses: list[Tensor] = field(default_factory=list)
    """As differentiated: they add up to the loss of the whole step."""
    inputs: list[dict[str, Tensor]] = field(default_factory=list)
    """The model's inputs of each micro-batch."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Of the whole step, before any clip."""

    @property
    def loss(self) -> Tensor:
        return torch.stack(self.losses).sum()


def one_step(folder: Path, **settings: Any) -> dict[str, Any]:
    """Arguments of every trl config: one step in fp32 on the CPU, quietly."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return {
        "output_dir": str(folder),
        "max_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        **settings,
    }


def run(trainer: Trainer) -> Step:
    """Train, and keep what the step was made of."""
    model: Any = trainer.model
    step, backward, compute = Step(), trainer.accelerator.backward, trainer.compute_loss

    def recording_backward(loss: Tensor, **kwargs: Any) -> None:
        backward(loss, **kwargs)
        step.losses.append(loss.detach().clone())
        step.gradients = gradients(model)

    def recording_loss(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        step.inputs.append({k: v.clone() for k, v in inputs.items() if isinstance(v, Tensor)})
        return compute(model, inputs, *args, **kwargs)

    with (
        patch.object(trainer.accelerator, "backward", recording_backward),
        patch.object(trainer, "compute_loss", recording_loss),
    ):
        trainer.train()
    return step
