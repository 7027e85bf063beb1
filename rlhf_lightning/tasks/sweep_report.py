"""`task=sweep_report sweep=DIR`: one page about a search, finished or not. Nothing of the search is changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.console import Console

from rlhf_lightning.config import RootConfig
from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation.sweep_curves import curves_to_show
from rlhf_lightning.evaluation.sweep_report import Importance, SweepReport, TrialRow, render
from rlhf_lightning.evaluation.sweep_report_console import best_lines, table_of
from rlhf_lightning.runs.curves import run_curves
from rlhf_lightning.runs.files import git_commit, write_text
from rlhf_lightning.sweeps.child import label
from rlhf_lightning.sweeps.importance import importance
from rlhf_lightning.sweeps.queue import RETRY_OF
from rlhf_lightning.sweeps.reading import FoundSweep, read_sweep
from rlhf_lightning.sweeps.record import best_trials
from rlhf_lightning.sweeps.tensorboard import write_trials

FILE_WIDTH = 150
"""Characters of a line where the table goes to a file."""


def run(root: RootConfig) -> dict[str, float]:
    """Read the sweep, print the short form, write report.html into it; how many trials there are.

    Raises: UserError.
    """
    assert root.sweep is not None
    folder = Path(root.sweep)
    found = read_sweep(folder)
    report = report_of(found)
    page = folder / "report.html"
    if not root.dry_run:
        try:
            write_text(page, render(report))
            write_trials(folder, found.trials, found.settings.objectives)
        except OSError as error:
            raise UserError(
                f"sweep must be a directory that can be written, got {str(folder)!r} ({error.strerror})"
            ) from error
    console = Console(highlight=False)
    if not console.is_terminal:  # a file or a pipe breaks no lines
        console.width = max(console.width, FILE_WIDTH)
    console.print(table_of(report))
    for line in (*report.notes, *best_lines(report)):
        console.print(line, soft_wrap=True, markup=False)
    if (folder / "best.yaml").exists():
        again = f"rlhf --config-dir {folder} --config-name best run_dir=NEW"
        console.print(f"repeat it: {again}", soft_wrap=True, markup=False)
    if not root.dry_run:
        console.print(f"sweep_report: {page}", soft_wrap=True, markup=False)
    return {"sweep/trials": float(len(report.trials))}


def report_of(found: FoundSweep) -> SweepReport:
    """What the page shows of a sweep."""
    settings = found.settings
    best = {t.number for t in best_trials(found.trials, settings.directions, found.constraints)}
    rows = [_row(found, trial, best=trial.number in best) for trial in found.trials]
    explained = [
        (name, importance(found.trials, place, direction))
        for place, (name, direction) in enumerate(
            zip(settings.objectives, settings.directions, strict=True)
        )
    ]
    measured = (row.curves for row in rows)
    return SweepReport(
        title=f"Sweep {found.folder.resolve().name}",
        objectives=settings.objectives,
        directions=settings.directions,
        trials=rows,
        constraints=[str(constraint) for constraint in found.constraints],
        log_params=found.log_params,
        importances=[Importance(name, given.shares, given.note) for name, given in explained],
        shown_curves=curves_to_show(measured, settings.objectives, settings.pruner.metric),
        notes=_notes(found, rows),
        provenance={
            "sampler": f"{settings.sampler.name}, seed {settings.sampler.seed}",
            "pruner": f"{settings.pruner.name} {settings.pruner.metric or ''}".strip(),
            "rules": _rules(settings.rules),
            "trials read from": found.source,
            "git commit of this page": git_commit() or "not a checkout",
        },
    )


def _row(found: FoundSweep, trial: Any, *, best: bool) -> TrialRow:
    run = found.run_of(trial)
    started, ended = trial.datetime_start, trial.datetime_complete
    return TrialRow(
        number=trial.number,
        state=trial.state.name,
        reason=found.reason_of(trial),
        params=dict(trial.params),
        values=list(trial.values) if trial.state.name == "COMPLETE" else None,
        violations=found.violations_of(trial),
        duration_s=(ended - started).total_seconds() if started and ended else None,
        retry_of=trial.user_attrs.get(RETRY_OF),
        links=_links(found.folder, trial.number, run),
        curves=run_curves(run) if run is not None else {},
        best=best,
    )


def _links(folder: Path, number: int, run: Path | None) -> dict[str, str]:
    """Relative to the page, so that the whole can be moved."""
    if run is None:
        return {}
    place = os.path.relpath(run, folder) if run.is_relative_to(folder) else str(run.resolve())
    links = {label(number): place}
    for text, name in (("report", "report.html"), ("log", "log.txt")):
        if (run / name).is_file():
            links[text] = f"{place}/{name}"
    return links


def _notes(found: FoundSweep, rows: list[TrialRow]) -> list[str]:
    notes = []
    if found.settings.learned_score_only:
        notes.append(
            "The only objective is the learned score, which PPO is trained to raise: what is best here may be"
            " reward hacking."
        )
    open_ = [row for row in rows if row.state in ("RUNNING", "WAITING")]
    if open_:
        numbers = ", ".join(str(row.number) for row in open_)
        notes.append(f"The search is not at its end; what runs or waits: {numbers}.")
    lost = [str(row.number) for row in rows if row.state == "COMPLETE" and not row.links]
    if lost:
        notes.append(f"Runs that are gone, so without curves: trials {', '.join(lost)}.")
    return notes


def _rules(rules: Any) -> str:
    given = {key: value for key, value in vars(rules).items() if value is not None}
    return ", ".join(f"{key} {value}" for key, value in given.items()) if rules.active else "none"
