"""What the stages share."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_lightning.config.checks import require


@dataclass
class ScheduleConfig:
    """Learning rate over a stage's optimizer steps: linear warm-up, then a shape down to `final_fraction`."""

    name: str = "cosine"
    """cosine | linear | constant. Default: [I]'s for SFT and reward model."""
    warmup_fraction: float = 0.0
    """Share of all steps that warm up; the presets of SFT, pretraining and reward model have 0.05."""
    final_fraction: float = 0.1
    """The rate that a step after the last would have, as a share of the highest. 0.1 is [I]'s; 1 with `constant`."""

    def __post_init__(self) -> None:
        require(
            self.name in ("cosine", "linear", "constant"),
            "schedule.name",
            "one of cosine, linear, constant",
            self.name,
        )
        require(
            0 <= self.warmup_fraction < 1,
            "schedule.warmup_fraction",
            "in [0, 1)",
            self.warmup_fraction,
        )
        require(
            0 <= self.final_fraction <= 1,
            "schedule.final_fraction",
            "in [0, 1]",
            self.final_fraction,
        )
        require(
            self.name != "constant" or self.final_fraction == 1,
            "schedule.final_fraction",
            "1 where schedule.name is constant",
            self.final_fraction,
        )


@dataclass
class InitConfig:
    """What a stage's weights start from."""

    policy: str | None = None
    """Run directory, artifact, Hugging Face folder, `none` (the model's own weights); null: the parent stage's run."""


@dataclass
class PPOInitConfig(InitConfig):
    """What PPO's models start from."""

    reward: str | None = None
    """The reward model: run directory, artifact or Hugging Face folder; null: the reward stage's run. The value model
    starts from it too."""
