"""What changes over a PPO run besides weights and optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import nan
from statistics import fmean
from typing import Any

from rlhf_lightning.config import PPOConfig
from rlhf_lightning.functional.kl import adapt_kl_coef
from rlhf_lightning.functional.scores import RunningMoments


@dataclass
class Progress:
    """All of it is in the checkpoint."""

    iteration: int = 0
    episodes: int = 0
    updates: int = 0
    kl_coef: float = 0.05
    moments: RunningMoments = field(default_factory=RunningMoments)
    skipped_minibatches: int = 0
    early_stops: int = 0
    kls: list[float] = field(default_factory=list)
    """Of the last iterations' responses, `ppo.stop_at_kl_window` of them: k1, nats per sequence. Not of those in which
    the policy stood still, nor from before the reference was another one."""

    @property
    def where(self) -> str:
        """How messages call this moment."""
        return f"ppo: iteration {self.iteration}"

    @property
    def mean_kl(self) -> float:
        """Mean of `kls`: how far from the reference the policy is; NaN where there are none."""
        return fmean(self.kls) if self.kls else nan

    def advance(self, hp: PPOConfig, *, episodes: int, kl: float) -> None:
        """Count an iteration that is done; β follows its KL (k1, nats per sequence) where that is asked for and the
        policy may move."""
        warming_up = self.is_warming_up(hp)
        self.iteration += 1
        self.episodes += episodes
        if not warming_up:
            self.kls = [*self.kls, kl][-hp.stop_at_kl_window :]
        if hp.adaptive_kl.enabled and not warming_up:
            self.kl_coef = adapt_kl_coef(
                self.kl_coef,
                kl,
                target=hp.adaptive_kl.target,
                horizon=hp.adaptive_kl.horizon,
                episodes=episodes,
            )

    def is_warming_up(self, hp: PPOConfig) -> bool:
        """Whether only the value model learns."""
        return self.iteration < hp.critic_warmup_iterations

    def is_over(self, hp: PPOConfig) -> bool:
        """Whether the policy has come as far from the reference as it may; not before a whole window was seen."""
        seen = len(self.kls) == hp.stop_at_kl_window
        return hp.stop_at_kl is not None and seen and self.mean_kl > hp.stop_at_kl

    def begin_from_new_reference(self, hp: PPOConfig) -> None:
        """KL is measured against another policy from now on; a run that is over stays so."""
        if not self.is_over(hp):
            self.kls = []

    def state(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Progress:
        """What `state` gave; or gave when there was the last KL alone."""
        state = {**state, "moments": RunningMoments(**state["moments"])}
        if "kl" in state:
            kl = state.pop("kl")
            state["kls"] = [kl] if state["iteration"] else []
        return cls(**state)
