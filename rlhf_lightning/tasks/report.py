"""report.html of a pipeline, or of an evaluation alone: what a person would look at."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_lightning.compose import defaults_diff
from rlhf_lightning.config import RootConfig
from rlhf_lightning.evaluation.figures import PANELS, learning_curves, score_over_kl, win_rate_bars
from rlhf_lightning.evaluation.report import (
    ConfigChange,
    ReportData,
    ReportFigure,
    StageRow,
    Turn,
    write_report,
)
from rlhf_lightning.plan import StagePlan
from rlhf_lightning.runs import Run, run_hash
from rlhf_lightning.runs.curves import read_metrics
from rlhf_lightning.runs.files import git_commit

STEPS = {
    "pretrain": "pretraining",
    "sft": "supervised fine-tuning",
    "reward": "a reward model from ranked completions",
    "ppo": "PPO",
}
"""Stage → what a reader calls it."""
EVALUATION = "What each model says to the same held-out prompts, and how it is judged."
NOT_SHOWN = ("run_dir", "outputs", "task", "dry_run")


def _subtitle(plans: Sequence[StagePlan]) -> str:
    """What was done, in order."""
    steps = [STEPS[task] for task in dict.fromkeys(plan.task for plan in plans) if task in STEPS]
    text = ", ".join(steps)
    return f"{text[0].upper()}{text[1:]}." if steps else EVALUATION


def write_run_report(
    run: Run,
    root: RootConfig,
    plans: Sequence[StagePlan],
    stages: Mapping[str, Run],
    metrics: Mapping[str, float],
) -> Path:
    """Write the page from what the stages left on disk; `metrics` are those of `run`."""
    models = list(root.evaluate.models)
    changes = [
        ConfigChange(key, default, value)
        for key, (default, value) in defaults_diff(root).items()
        if key not in NOT_SHOWN
    ]
    data = ReportData(
        title=f"{root.model.name} on {root.mix.name}, seed {root.seed}",
        subtitle=_subtitle(plans),
        stages=[
            # what is about to finish has no metrics on disk yet
            _row(plan, metrics if stages[place] is run else stages[place].metrics)
            for plan, place in zip(plans, stages, strict=True)
        ],
        models=models,
        metrics=metrics,
        figures=_figures(stages, metrics, models),
        turns=_turns(stages),
        changes=changes,
        provenance=_provenance(run, plans),
    )
    return write_report(run.report, data)


def _row(plan: StagePlan, found: Mapping[str, float]) -> StageRow:
    stage = plan.task
    get = lambda name: found.get(f"{stage}/{name}")  # noqa: E731
    counts = {
        "pretrain": ("documents of raw text", get("examples")),
        "sft": ("demonstrations", get("examples")),
        "reward": ("prompts with ranked completions", get("prompts")),
        "ppo": ("episodes", get("episodes")),
        "evaluate": (
            "held-out prompts for each model",
            found.get(f"{plan.root.evaluate.reference}/prompts"),
        ),
    }
    what, count = counts[stage]
    return StageRow(
        name=plan.label,
        summary=what,
        parameters=_whole(get("parameters")),
        examples=_whole(count),
        tokens=_whole(get("tokens")),
        duration_s=found.get(f"time/{stage}_s"),
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _figures(
    stages: Mapping[str, Run], metrics: Mapping[str, float], models: Sequence[str]
) -> list[ReportFigure]:
    pairs = [(b, a) for i, a in enumerate(models) for b in models[i + 1 :]]
    drawn = [("Who wins", win_rate_bars(metrics, pairs), WHO_WINS)]
    for place, run in reversed(list(stages.items())):
        stage = place.split("/")[-1]
        curves = read_metrics(run.metrics_csv)
        if stage == "ppo":
            drawn.append((f"Score and gold over KL ({place})", score_over_kl(curves), OVER_KL))
        if stage in PANELS:
            axis = "iteration" if stage == "ppo" else "optimizer step"
            drawn.append(
                (f"Over time: {place}", learning_curves(curves, PANELS[stage], axis), CURVES[stage])
            )
    return [
        ReportFigure(title, figure, caption)
        for title, figure, caption in drawn
        if figure is not None
    ]


WHO_WINS = (
    "How often the gold judge prefers one model's answer to another's on the same held-out prompt. A tie counts one "
    "half; the line is the 95 % interval; one half would be no difference."
)
OVER_KL = (
    "As PPO moves away from the SFT policy (to the right), the learned score should rise. The gold score is the truth "
    "that training never sees: where it falls while the score rises, the reward model is being exploited."
)
CURVES = {
    "pretrain": "Loss on raw text: what is trained on, and held-out documents.",
    "sft": "Loss on the assistant's tokens of demonstrations: what is trained on, and held-out ones.",
    "reward": "How often the reward model orders a held-out pair as the labeler did.",
    "ppo": "Rollouts are the training prompts; held out are fixed prompts of the validation split.",
}


def _turns(stages: Mapping[str, Run]) -> list[Turn]:
    path = stages["evaluate"].path / "conversations.json"
    return [Turn(**turn) for turn in json.loads(path.read_text(encoding="utf-8"))]


def _provenance(run: Run, plans: Sequence[StagePlan]) -> dict[str, str]:
    import lightning
    import torch
    import transformers

    versions = {"torch": torch, "lightning": lightning, "transformers": transformers}
    return {
        "run": run.path.name,
        "git commit": git_commit() or "not a checkout",
        "python": platform.python_version(),
        **{name: str(module.__version__) for name, module in versions.items()},
        **{plan.label: run_hash(plan.identity) for plan in plans},
    }
