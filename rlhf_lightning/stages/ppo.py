"""Step 3: PPO against a score, in a bandit environment: a prompt, one response, one score.

`training_step` is the paper's figure, one arrow a line: collect → to_experience → epochs of minibatch updates.
Sources: Schulman et al. 2017, arXiv:1707.06347; Stiennon et al. 2020, arXiv:2009.01325; Ouyang et al. 2022,
arXiv:2203.02155 (PPO-ptx, EMA).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.batches import Experience, PPOBatch, PromptBatch, Rollout, SFTBatch
from rlhf_lightning.callbacks.log import log_metrics
from rlhf_lightning.config import PPOConfig
from rlhf_lightning.models.adapters import TRAINED, AdapterView, TrunkScorer, copy_adapter
from rlhf_lightning.models.loading import frozen
from rlhf_lightning.rewards.base import RewardFunction, taken_statistics
from rlhf_lightning.stages.ppo_progress import Progress
from rlhf_lightning.stages.ppo_update import PPOUpdate
from rlhf_lightning.stages.rollout import Sampling, collect, to_experience
from rlhf_lightning.stages.updates import (
    LearningRate,
    MovingAverage,
    OptimizerFactory,
    computing_dtype,
    gradients_of,
    leave_out_frozen,
    require_finite,
    require_whole,
    trained,
)
from rlhf_lightning.stages.watching import GoldFunction, watched, weighted_means


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
        self.minibatches = PPOUpdate(
            hp,
            policy,
            value,
            lambda: [*self.actor, *self.critic],
            manual_backward=self.manual_backward,
        )
        self.ema = MovingAverage(hp.ema_decay) if hp.ema_decay is not None else None
        self.tokenizer, self.gold, self.seed = tokenizer, gold, seed
        self.lr = LearningRate(hp.schedule, hp.iterations)
        self.generator = torch.Generator().manual_seed(seed)
        self.progress = Progress(kl_coef=hp.kl_coef)
        lowered = next(policy.parameters()).dtype != torch.float32
        recompute = hp.old_logprobs == "recomputed" or (hp.old_logprobs == "auto" and lowered)
        self.sampling = Sampling(
            hp.max_response_tokens,
            hp.temperature,
            hp.rollout_batch_size,
            tokenizer,
            recompute_logprobs=recompute,
        )
        self.validation_samples: list[dict[str, Any]] = []
        self.validation_metrics: dict[str, float] = {}
        self.validated_at: int | None = None
        """Iteration of the last validation by this process."""
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
    def critic(self) -> list[nn.Parameter]:
        """What the value loss changes."""
        value = self.value
        return value.trained() if isinstance(value, TrunkScorer) else trained(value)

    @property
    def actor(self) -> list[nn.Parameter]:
        """What the policy loss changes."""
        others = {id(p) for p in self.critic}
        return [p for p in trained(self.policy) if id(p) not in others]

    @property
    def log_step(self) -> int:
        """The x axis of everything this stage logs: iterations."""
        return self.progress.iteration

    def export_average(self) -> None:
        """After training: the policy becomes its moving average where `ppo.ema_decay` is set."""
        if self.ema is not None:
            self.ema.copy_to(self.actor)

    def configure_model(self) -> None:
        # a strategy that spreads weights puts checkpoints back after it has made the optimizer
        if self.ema is not None and not self.trainer.strategy.restore_checkpoint_after_setup:
            self.ema.begin(self.actor)

    def configure_optimizers(self) -> Optimizer:
        if self.ema is not None:
            self.ema.begin(self.actor)
        groups: list[dict[str, Any]] = [{"params": self.actor}]
        if self.critic:
            rate = {} if self.hp.value_lr is None else {"lr": self.hp.value_lr}
            groups.append({"params": self.critic, **rate})
        return self.make_optimizer(groups)

    def on_fit_start(self) -> None:
        self._place_frozen()
        self.minibatches.gradients = gradients_of(self)

    def on_validation_start(self) -> None:
        # also before and after training, where no fit has begun
        self._place_frozen()

    def _place_frozen(self) -> None:
        for model in self._frozen:
            if isinstance(model, nn.Module):
                place = getattr(self.trainer.strategy, "place_frozen", None)
                (place or nn.Module.to)(model, self.device)

    def training_step(self, batch: PPOBatch, batch_idx: int) -> None:
        hp, progress, clock = self.hp, self.progress, time.perf_counter()
        lr = self.lr.apply(self.optimizers(), progress.iteration)  # type: ignore[arg-type]
        rollout = self.rollout(batch.prompts, self.generator, samples=hp.samples_per_prompt)
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
        progress.advance(hp, episodes=len(rollout.scores), kl=statistics["rollout/kl_k1"])
        self._after_updates()
        log_metrics(self, statistics, step=self.log_step)
        self._stop_if_over()

    def on_train_start(self) -> None:
        self._stop_if_over()  # a run that was killed between its last iteration and its end

    def _stop_if_over(self) -> None:
        if self.progress.is_over(self.hp):
            self.trainer.should_stop = True

    def _after_updates(self) -> None:
        """What an iteration changes besides its counters: EMA, reference."""
        every = self.hp.reference_refresh_every
        if self.ema is not None:
            # after each iteration, not each minibatch: [I] does not say which
            self.ema.update(self.actor)
        if every and self.progress.iteration % every == 0:
            self._refresh_reference()

    def _refresh_reference(self) -> None:
        if isinstance(self.reference, AdapterView):
            assert self.reference.adapter is not None
            copy_adapter(self.policy, TRAINED, self.reference.adapter)
        else:
            self.reference.load_state_dict(self.policy.state_dict())
        self.progress.begin_from_new_reference(self.hp)

    def rollout(
        self, prompts: PromptBatch, generator: torch.Generator, *, samples: int = 1
    ) -> Rollout:
        """Sample and score responses, `samples` of each prompt in a row."""
        self.eval()
        # autocast (bf16-mixed) begins after __init__: the sampler's numbers are then half precision too
        recompute = self.sampling.recompute_logprobs or (
            self.hp.old_logprobs == "auto" and computing_dtype(self.policy) != torch.float32
        )
        sampling = replace(self.sampling, recompute_logprobs=recompute, group_size=samples)
        models = (self.policy, self.reference, self.value, self.reward)
        rollout = collect(prompts.repeated(samples), *models, sampling, generator)
        self.train()
        require_finite(rollout.scores, where=self.progress.where, what="score")
        return rollout

    def update(self, experience: Experience, pretraining: Sequence[SFTBatch]) -> dict[str, float]:
        """Epochs of minibatch steps on one iteration's experience; returns means over its minibatches."""
        return self.minibatches.epochs(
            experience,
            pretraining,
            self.progress,
            optimizer=self.optimizers(),
            generator=self.generator,
        )

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
        self.validated_at = self.log_step
        self.validation_metrics = weighted_means(parts) | taken_statistics(self.reward, "val")
        log_metrics(self, self.validation_metrics, step=self.log_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved: dict[str, Any] = {
            "progress": self.progress.state(),
            "generator": self.generator.get_state(),
        }
        if self.hp.reference_refresh_every:
            state = getattr(self.trainer.strategy, "frozen_state", nn.Module.state_dict)
            saved["reference"] = state(self.reference)
        checkpoint["ppo"] = saved
        leave_out_frozen(checkpoint, self.policy, "policy")
        if self.value is not None:
            leave_out_frozen(checkpoint, self.value, "value")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        require_whole(checkpoint, self)
        saved = checkpoint["ppo"]
        self.progress = Progress.from_state(saved["progress"])
        self.generator.set_state(saved["generator"])
        if "reference" in saved:
            load = getattr(self.trainer.strategy, "load_frozen", nn.Module.load_state_dict)
            load(self.reference, saved["reference"])
