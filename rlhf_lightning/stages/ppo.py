"""Step 3: PPO against a score, in a bandit environment: a prompt, one response, one score.

`training_step` is the paper's figure, one arrow a line: collect → to_experience → epochs of minibatch updates.
Sources: Schulman et al. 2017, arXiv:1707.06347; Stiennon et al. 2020, arXiv:2009.01325; Ouyang et al. 2022,
arXiv:2203.02155 (PPO-ptx, EMA).
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.batches import Experience, PPOBatch, PromptBatch, Rollout, SFTBatch
from rlhf_lightning.callbacks.log import log_metrics
from rlhf_lightning.config import PPOConfig
from rlhf_lightning.functional.kl import adapt_kl_coef
from rlhf_lightning.functional.losses import causal_lm_loss
from rlhf_lightning.functional.scores import RunningMoments
from rlhf_lightning.models.adapters import TRAINED, AdapterView, TrunkScorer, copy_adapter, in_use
from rlhf_lightning.models.forward import hidden_states_of, packed_logits
from rlhf_lightning.models.loading import frozen
from rlhf_lightning.rewards.base import RewardFunction, taken_statistics
from rlhf_lightning.stages.ppo_losses import (
    RATIO_TOLERANCE,
    actor_losses,
    check_ratio,
    critic_loss,
)
from rlhf_lightning.stages.rollout import (
    Sampling,
    collect,
    micro_batches,
    shuffled_minibatches,
    to_experience,
)
from rlhf_lightning.stages.updates import (
    LearningRate,
    MovingAverage,
    OptimizerFactory,
    leave_out_frozen,
    require_finite,
    require_whole,
    step_optimizer,
    trained,
)
from rlhf_lightning.stages.watching import GoldFunction, watched, weighted_means

EARLY_STOP_FACTOR = 1.5
"""An iteration's epochs end when approx_kl exceeds this times `ppo.target_kl` (the customary factor)."""


@dataclass
class Progress:
    """What changes over a run besides weights and optimizer: all of it is in the checkpoint."""

    iteration: int = 0
    episodes: int = 0
    updates: int = 0
    kl_coef: float = 0.05
    moments: RunningMoments = field(default_factory=RunningMoments)
    skipped_minibatches: int = 0
    early_stops: int = 0


class PPOModule(LightningModule):
    """One `training_step` is one iteration: rollout, then `epochs` passes of minibatch updates.

    The reference and the reward are not submodules: they are frozen, loaded from their own artifacts, and stay
    out of the checkpoints.
    """

    def __init__(
        self,
        hp: PPOConfig,
        *,
        policy: PreTrainedModel,
        value: nn.Module | None,
        reference: nn.Module,
        reward: RewardFunction,
        tokenizer: PreTrainedTokenizerFast,
        optimizer: OptimizerFactory,
        seed: int,
        gold: GoldFunction | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # a step has its own loop of micro-batches
        self.strict_loading = (
            False  # a frozen backbone is not in the checkpoint; require_whole checks
        )
        self.hp, self.policy, self.value, self.make_optimizer = hp, policy, value, optimizer
        self._frozen = (frozen(reference), reward)
        self.critic = value.trained() if isinstance(value, TrunkScorer) else trained(value)
        others = {id(p) for p in self.critic}
        self.actor = [p for p in trained(policy) if id(p) not in others]
        self.ema = MovingAverage(self.actor, hp.ema_decay) if hp.ema_decay is not None else None
        self.tokenizer, self.gold, self.seed = tokenizer, gold, seed
        self.lr = LearningRate(hp.schedule, hp.iterations)
        self.generator = torch.Generator().manual_seed(seed)
        self.progress = Progress(kl_coef=hp.kl_coef)
        lowered = next(policy.parameters()).dtype != torch.float32
        recompute = hp.old_logprobs == "recomputed" or (hp.old_logprobs == "auto" and lowered)
        self.sampling = Sampling(
            hp.max_response_tokens, hp.temperature, hp.rollout_batch_size, tokenizer, recompute
        )
        self.validation_samples: list[dict[str, Any]] = []
        self.validation_metrics: dict[str, float] = {}
        self._validation: list[tuple[PromptBatch, Rollout]] = []

    @property
    def reference(self) -> nn.Module:
        """The frozen policy that KL is measured against."""
        return self._frozen[0]

    @property
    def reward(self) -> RewardFunction:
        """Where scores come from."""
        return self._frozen[1]

    @property
    def log_step(self) -> int:
        """The x axis of everything this stage logs: iterations."""
        return self.progress.iteration

    def export_average(self) -> None:
        """After training: the policy becomes its moving average where `ppo.ema_decay` is set."""
        if self.ema is not None:
            self.ema.copy_to(self.actor)

    def configure_optimizers(self) -> Optimizer:
        groups: list[dict[str, Any]] = [{"params": self.actor}]
        if self.critic:
            rate = {} if self.hp.value_lr is None else {"lr": self.hp.value_lr}
            groups.append({"params": self.critic, **rate})
        return self.make_optimizer(groups)

    def on_fit_start(self) -> None:
        self._place_frozen()

    def on_validation_start(self) -> None:
        # also before and after training, where no fit has begun
        self._place_frozen()

    def _place_frozen(self) -> None:
        for model in self._frozen:
            if isinstance(model, nn.Module):
                nn.Module.to(model, self.device)

    def training_step(self, batch: PPOBatch, batch_idx: int) -> None:
        hp, progress, clock = self.hp, self.progress, time.perf_counter()
        lr = self.lr.apply(self.optimizers(), progress.iteration)  # type: ignore[arg-type]
        rollout = self.rollout(batch.prompts.repeated(hp.samples_per_prompt), self.generator)
        if hp.normalize_scores:
            progress.moments = progress.moments.update(rollout.scores)
        experience, statistics = to_experience(
            rollout, hp, kl_coef=progress.kl_coef, moments=progress.moments
        )
        rollout_s, clock = time.perf_counter() - clock, time.perf_counter()
        statistics |= taken_statistics(self.reward, "rollout")
        statistics |= self.update(experience, batch.pretraining)
        update_s = time.perf_counter() - clock
        tokens = int(rollout.response_mask.sum())
        statistics |= {
            "ppo/kl_coef": progress.kl_coef,
            "ppo/lr": lr,
            "time/rollout_s": rollout_s,
            "time/update_s": update_s,
            "time/tokens_per_s": tokens / (rollout_s + update_s),
            "time/episodes_per_s": len(rollout.scores) / (rollout_s + update_s),
        }
        self._advance(len(rollout.scores), statistics["rollout/kl_k1"])
        log_metrics(self, statistics, step=self.log_step)

    def _advance(self, episodes: int, kl: float) -> None:
        """What an iteration changes after its updates: counters, β, EMA, reference."""
        hp, progress = self.hp, self.progress
        progress.iteration += 1
        progress.episodes += episodes
        if hp.adaptive_kl.enabled:
            progress.kl_coef = adapt_kl_coef(
                progress.kl_coef,
                kl,
                target=hp.adaptive_kl.target,
                horizon=hp.adaptive_kl.horizon,
                episodes=episodes,
            )
        if self.ema is not None:
            # after each iteration, not each minibatch: [I] does not say which
            self.ema.update(self.actor)
        if hp.reference_refresh_every and progress.iteration % hp.reference_refresh_every == 0:
            self._refresh_reference()

    def _refresh_reference(self) -> None:
        if isinstance(self.reference, AdapterView):
            assert self.reference.adapter is not None
            copy_adapter(self.policy, TRAINED, self.reference.adapter)
        else:
            self.reference.load_state_dict(self.policy.state_dict())

    def rollout(self, prompts: PromptBatch, generator: torch.Generator) -> Rollout:
        """Sample and score one response a prompt."""
        self.eval()
        # autocast (bf16-mixed) begins after __init__: the sampler's numbers are then half precision too
        recompute = self.sampling.recompute_logprobs or (
            self.hp.old_logprobs == "auto" and self._precision() != torch.float32
        )
        sampling = replace(self.sampling, recompute_logprobs=recompute)
        rollout = collect(
            prompts, self.policy, self.reference, self.value, self.reward, sampling, generator
        )
        self.train()
        require_finite(rollout.scores, where=self._where, what="score")
        return rollout

    def update(self, experience: Experience, pretraining: SFTBatch | None) -> dict[str, float]:
        """Epochs of minibatch steps on one iteration's experience; returns means over the steps taken."""
        taken: list[dict[str, float]] = []
        for epoch in range(self.hp.epochs):
            minibatches = shuffled_minibatches(experience, self.hp.minibatch_size, self.generator)
            texts = _shares(pretraining, len(minibatches))
            for minibatch, text in zip(minibatches, texts, strict=True):
                first = epoch == 0 and not taken
                step = self._step(minibatch, text, first=first)
                taken.append(step)
                if step["stopped"]:
                    self.progress.early_stops += 1
                    return self._update_statistics(taken)
        return self._update_statistics(taken)

    def _update_statistics(self, taken: list[dict[str, float]]) -> dict[str, float]:
        found: dict[str, list[float]] = {}
        for step in taken:  # not every step has text
            for name, value in step.items():
                found.setdefault(name, []).append(value)
        names = [name for name in found if name not in ("stopped", "ratio_max")]
        means = {f"ppo/{n}": sum(found[n]) / len(found[n]) for n in names}
        return means | {
            "ppo/ratio_max": max(s["ratio_max"] for s in taken),
            "ppo/minibatches": float(len(taken)),
            "ppo/skipped_minibatches": float(self.progress.skipped_minibatches),
            "ppo/early_stops": float(self.progress.early_stops),
        }

    def _step(
        self, minibatch: Experience, text: SFTBatch | None, *, first: bool
    ) -> dict[str, float]:
        """One optimizer step; the gradient does not depend on how the minibatch is split."""
        hp, optimizer, where = self.hp, self.optimizers(), self._where
        tokens = int(minibatch.response_mask.sum())
        sums: dict[str, Tensor] = {}
        for micro in micro_batches(minibatch, hp.micro_batch_size):
            found = self._backward(micro, tokens, first=first)
            for name, value in found.items():
                largest = name == "ratio_max"
                before = sums.get(name, value.new_zeros(()))
                sums[name] = torch.maximum(before, value) if largest else before + value
        if text is not None and not self._warming_up:
            sums["ptx_loss"] = self._pretraining_backward(text, where=where)
        step = {name: value.item() for name, value in sums.items()} | {"stopped": 0.0}
        if hp.ratio_spike is not None and step["ratio_mean"] > hp.ratio_spike:
            self.progress.skipped_minibatches += 1
            optimizer.zero_grad()  # type: ignore[union-attr]
            return step | {"grad_norm": 0.0}
        if hp.target_kl is not None and step["approx_kl"] > EARLY_STOP_FACTOR * hp.target_kl:
            optimizer.zero_grad()  # type: ignore[union-attr]
            return step | {"grad_norm": 0.0, "stopped": 1.0}
        step["grad_norm"] = step_optimizer(
            optimizer, [*self.actor, *self.critic], grad_clip=hp.grad_clip, where=where
        )
        self.progress.updates += 1
        return step

    @property
    def _warming_up(self) -> bool:
        """Whether only the value model learns."""
        return self.progress.iteration < self.hp.critic_warmup_iterations

    def _precision(self) -> torch.dtype:
        """What the policy computes in: autocast's dtype, or that of its weights."""
        device = self.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return next(self.policy.parameters()).dtype

    def _backward(self, micro: Experience, tokens: int, *, first: bool) -> dict[str, Tensor]:
        """Backward of a micro-batch's loss / the minibatch's tokens; its share of the statistics."""
        shared = self.hp.value_kind == "shared"
        with hidden_states_of(self.policy) if shared else nullcontext([]) as hidden:
            actor, logprobs, statistics = actor_losses(self.policy, micro, self.hp, tokens=tokens)
        if first:
            allowed = self.hp.ratio_tolerance or RATIO_TOLERANCE[self._precision()]
            check_ratio(logprobs, micro, allowed=allowed, where=self._where)
        require_finite(actor, where=self._where)
        if self.value is None:
            self.manual_backward(actor)
            return statistics
        if not shared and not self._warming_up:  # before the critic's forward: one graph at a time
            self.manual_backward(actor)
        critic, found = self._critic_loss(micro, tokens, hidden[0] if shared else None)
        require_finite(critic, where=self._where)
        with in_use(self.value):  # checkpointed layers run again in backward
            self.manual_backward(actor + critic if shared and not self._warming_up else critic)
        return statistics | found

    def _critic_loss(
        self, micro: Experience, tokens: int, hidden: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.value is not None
        if hidden is not None and self._warming_up:  # only the head learns
            hidden = hidden.detach()
        return critic_loss(self.value, micro, self.hp, tokens=tokens, hidden=hidden)

    @property
    def _where(self) -> str:
        return f"ppo: iteration {self.progress.iteration}"

    def _pretraining_backward(self, text: SFTBatch, *, where: str) -> Tensor:
        """Add γ_ptx times the gradient of the text's mean token loss; returns that mean."""
        # 1: a share of padding alone (all its texts were too long) adds nothing
        targets = max(int(text.loss_mask[:, 1:].sum()), 1)
        total = torch.zeros((), device=text.ids.device)
        for micro in text.micro_batches(self.hp.micro_batch_size):
            logits = packed_logits(self.policy, micro)
            loss = causal_lm_loss(logits, micro.ids, micro.loss_mask, normalizer=targets)
            require_finite(loss, where=f"{where}, pretraining text")
            self.manual_backward(self.hp.ptx.coef * loss)
            total += loss.detach()
        return total

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        # a generator of its own: looking never changes what training samples
        generator = torch.Generator().manual_seed(self.seed + 1 + batch_idx)
        self._validation.append((batch, self.rollout(batch, generator)))

    def on_validation_epoch_end(self) -> None:
        progress, parts = self.progress, []
        self.validation_samples = []
        for prompts, rollout in self._validation:
            metrics, rows = watched(
                prompts,
                rollout,
                self.hp,
                self.tokenizer,
                kl_coef=progress.kl_coef,
                moments=progress.moments,
                gold=self.gold,
            )
            parts.append((metrics, len(prompts.ids)))
            self.validation_samples += rows[: self.hp.sample_prompts - len(self.validation_samples)]
        self._validation.clear()
        self.validation_metrics = weighted_means(parts) | taken_statistics(self.reward, "val")
        log_metrics(self, self.validation_metrics, step=self.log_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved: dict[str, Any] = {
            "progress": asdict(self.progress),
            "generator": self.generator.get_state(),
        }
        if self.hp.reference_refresh_every:
            saved["reference"] = self.reference.state_dict()
        checkpoint["ppo"] = saved
        leave_out_frozen(checkpoint, self.policy, "policy")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        require_whole(checkpoint, self)
        saved = checkpoint["ppo"]
        progress = dict(saved["progress"])
        moments = RunningMoments(**progress.pop("moments"))
        self.progress = Progress(**progress, moments=moments)
        self.generator.set_state(saved["generator"])
        if "reference" in saved:
            self.reference.load_state_dict(saved["reference"])


def _shares(text: SFTBatch | None, count: int) -> list[SFTBatch | None]:
    """The pretraining rows, dealt to `count` minibatches."""
    if text is None:
        return [None] * count
    parts = torch.arange(len(text.ids)).tensor_split(count)
    return [text.rows(part) if len(part) else None for part in parts]
