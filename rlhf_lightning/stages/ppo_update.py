"""PPO's last arrow: epochs of minibatch steps on one iteration's experience."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.batches import Experience, SFTBatch
from rlhf_lightning.config import PPOConfig
from rlhf_lightning.functional.losses import causal_lm_loss
from rlhf_lightning.models.adapters import in_use
from rlhf_lightning.models.forward import hidden_states_of, packed_logits
from rlhf_lightning.processes import all_sum, gather, piece_size, shares, world_size
from rlhf_lightning.stages.ppo_losses import (
    actor_losses,
    check_ratio,
    critic_loss,
    ratio_error,
)
from rlhf_lightning.stages.ppo_progress import Progress
from rlhf_lightning.stages.rollout import micro_batches, shuffled_minibatches
from rlhf_lightning.stages.updates import (
    ONE_PROCESS,
    Gradients,
    computing_dtype,
    require_finite,
    step_optimizer,
)

EARLY_STOP_FACTOR = 1.5
"""An iteration's epochs end when approx_kl exceeds this times `ppo.target_kl` (the customary factor)."""


class PPOUpdate:
    """Minibatch steps for a policy and its value model; `manual_backward` is the module's (precision, strategy)."""

    def __init__(
        self,
        hp: PPOConfig,
        policy: PreTrainedModel,
        value: nn.Module | None,
        parameters: Callable[[], Sequence[nn.Parameter]],
        *,
        manual_backward: Callable[[Tensor], None],
    ) -> None:
        self.hp, self.policy, self.value = hp, policy, value
        # asked for each time: a strategy that shards a model gives it other parameters
        self.parameters, self.manual_backward = parameters, manual_backward
        self.gradients: Gradients = ONE_PROCESS

    def epochs(
        self,
        experience: Experience,
        pretraining: Sequence[SFTBatch],
        progress: Progress,
        *,
        optimizer: Any,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """All epochs, or as many as `target_kl` allows; returns means over the minibatches that were looked at.

        `pretraining` is the text of each minibatch, or empty.
        """
        taken: list[dict[str, float]] = []
        for epoch in range(self.hp.epochs):
            minibatches = shuffled_minibatches(
                experience, self.hp.minibatch_size, generator, group_size=self.hp.update_group_size
            )
            texts = pretraining or [None] * len(minibatches)
            for minibatch, text in zip(minibatches, texts, strict=True):
                first = epoch == 0 and not taken
                step = self.step(minibatch, text, progress, optimizer=optimizer, first=first)
                taken.append(step)
                if step["stopped"]:
                    progress.early_stops += 1
                    return _statistics(taken, progress)
        return _statistics(taken, progress)

    def step(
        self,
        minibatch: Experience,
        text: SFTBatch | None,
        progress: Progress,
        *,
        optimizer: Any,
        first: bool,
    ) -> dict[str, float]:
        """One optimizer step on a global minibatch; the gradient does not depend on how it is split."""
        hp = self.hp
        tokens = int(minibatch.response_mask.sum())
        sums: dict[str, Tensor] = {}
        group, episodes = hp.update_group_size, len(minibatch.response_ids)
        size = group * piece_size(episodes // group, hp.micro_batch_size // group)
        pieces = micro_batches(minibatch, size, group_size=group)
        for micro, counts in shares(pieces):
            found = self.backward(micro, tokens, progress, first=first, counts=counts)
            for name, value in found.items() if counts else ():
                before = sums.get(name, value.new_zeros(()))
                largest = name in self._largest
                sums[name] = torch.maximum(before, value) if largest else before + value
        sums = _of_all_processes(sums, largest=self._largest)
        if first:
            check_ratio(
                sums.pop("ratio_error").item(),
                dtype=computing_dtype(self.policy),
                allowed=hp.ratio_tolerance,
                where=progress.where,
            )
        step = {name: value.item() for name, value in sums.items()} | {"stopped": 0.0}
        if hp.ratio_spike is not None and step["ratio_mean"] > hp.ratio_spike:
            progress.skipped_minibatches += 1
            self.gradients.discard_gradients(optimizer)
            return step
        if hp.target_kl is not None and step["approx_kl"] > EARLY_STOP_FACTOR * hp.target_kl:
            self.gradients.discard_gradients(optimizer)
            return step | {"stopped": 1.0}
        if text is not None and not progress.is_warming_up(hp):
            step["ptx_loss"] = self._text_backward(text, progress)
        step["grad_norm"] = step_optimizer(
            optimizer,
            self.parameters(),
            grad_clip=hp.grad_clip,
            where=progress.where,
            gradients=self.gradients,
        )
        progress.updates += 1
        return step

    def backward(
        self,
        micro: Experience,
        tokens: int,
        progress: Progress,
        *,
        first: bool,
        counts: bool = True,
    ) -> dict[str, Tensor]:
        """Backward of a micro-batch's loss / the minibatch's tokens; its share of the statistics.

        One that does not count leaves a gradient of 0.
        """
        shared, warming_up = self.hp.value_kind == "shared", progress.is_warming_up(self.hp)
        states_of = hidden_states_of(self.policy) if shared else nullcontext([])
        with torch.set_grad_enabled(not warming_up), states_of as hidden:
            actor, logprobs, statistics = actor_losses(self.policy, micro, self.hp, tokens=tokens)
        if first:
            dtype = computing_dtype(self.policy)
            statistics["ratio_error"] = ratio_error(logprobs, micro, dtype=dtype, tokens=tokens)
        require_finite(actor, where=progress.where)
        actor = actor if counts else 0 * actor
        if self.value is None:
            self.manual_backward(actor)
            return statistics
        if not shared and not warming_up:  # before the critic's forward: one graph at a time
            self.manual_backward(actor)
        states = hidden[0] if shared else None
        if states is not None and warming_up:  # only the head learns
            states = states.detach()
        critic, found = critic_loss(self.value, micro, self.hp, tokens=tokens, hidden=states)
        require_finite(critic, where=progress.where)
        critic = critic if counts else 0 * critic
        with in_use(self.value):  # checkpointed layers run again in backward
            self.manual_backward(actor + critic if shared and not warming_up else critic)
        return statistics | found

    def _text_backward(self, text: SFTBatch, progress: Progress) -> float:
        """Add γ_ptx times the gradient of the text's mean token loss; returns that mean."""
        # 1: padding alone (all its texts were too long) adds nothing
        targets = max(int(text.loss_mask[:, 1:].sum()), 1)
        total = torch.zeros((), device=text.ids.device)
        size = piece_size(len(text.ids), self.hp.micro_batch_size)
        for micro, counts in shares(list(text.micro_batches(size))):
            logits = packed_logits(self.policy, micro)
            loss = causal_lm_loss(logits, micro.ids, micro.loss_mask, normalizer=targets)
            require_finite(loss, where=f"{progress.where}, pretraining text")
            self.manual_backward(self.hp.ptx.coef * (loss if counts else 0 * loss))
            if counts:
                total += loss.detach()
        return all_sum(total).item()

    @property
    def _largest(self) -> set[str]:
        """Statistics of which a minibatch has the largest, not the sum, of its micro-batches."""
        exact = computing_dtype(self.policy) == torch.float32
        return {"ratio_max", "ratio_error"} if exact else {"ratio_max"}


def _of_all_processes(sums: dict[str, Tensor], *, largest: set[str]) -> dict[str, Tensor]:
    """Sums over a minibatch's micro-batches, put together from all processes: one that had none has no names."""
    if world_size() == 1:
        return sums
    parts = gather({name: value.cpu() for name, value in sums.items()})
    found: dict[str, Tensor] = {}
    for name in next(part for part in parts if part):
        values = torch.stack([part[name] for part in parts if part])
        found[name] = values.max() if name in largest else values.sum()
    return found


def _statistics(taken: list[dict[str, float]], progress: Progress) -> dict[str, float]:
    """Means over the minibatches under the names that are logged."""
    found: dict[str, list[float]] = {}
    for step in taken:  # one that took no step has no norm and no text
        for name, value in step.items():
            found.setdefault(name, []).append(value)
    names = [name for name in found if name not in ("stopped", "ratio_max")]
    means = {f"ppo/{n}": sum(found[n]) / len(found[n]) for n in names}
    return means | {
        "ppo/ratio_max": max(s["ratio_max"] for s in taken),
        "ppo/minibatches": float(len(taken)),
        "ppo/skipped_minibatches": float(progress.skipped_minibatches),
        "ppo/early_stops": float(progress.early_stops),
    }
