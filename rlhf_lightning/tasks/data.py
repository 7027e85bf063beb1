"""`task=data`: what a mix holds, as tables, report.html and data.json. No weights are loaded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.callbacks.progress import counted
from rlhf_lightning.config import RootConfig
from rlhf_lightning.data.mixture import Mixture
from rlhf_lightning.data.records import KINDS, SPLITS, Record, validate
from rlhf_lightning.data.tokenizer import tokenizer_fingerprint
from rlhf_lightning.errors import Interrupted, UserError
from rlhf_lightning.evaluation.data_report import DataReport, Part, finite, render
from rlhf_lightning.evaluation.data_report_console import tables
from rlhf_lightning.plan import StagePlan
from rlhf_lightning.runs import Stop
from rlhf_lightning.runs.files import (
    git_commit,
    is_temporary,
    own_directory,
    read_json,
    write_json,
    write_text,
)
from rlhf_lightning.tasks.data_rows import Limits, shown_rows
from rlhf_lightning.tasks.data_survey import Survey
from rlhf_lightning.tasks.generate_output import require_writable
from rlhf_lightning.tasks.job import own_tokenizer

BATCH = 256
"""Records in memory at once."""
FILE_WIDTH = 150
"""Characters of a line where the tables go to a file."""


def run(plan: StagePlan, mixture: Mixture, stop: Stop) -> dict[str, float]:
    """Read the mix, print the tables, write the page; returns how many records were read.

    Raises: UserError, Interrupted.
    """
    root, folder = plan.root, plan.path
    if root.run_dir:
        _require_own(folder)
    require_writable(folder, "run_dir" if root.run_dir else "outputs")
    tokenizer = own_tokenizer(root.model, mixture)
    try:
        parts = survey(root, mixture, tokenizer, stop)
    except Interrupted as error:
        raise Interrupted(error.signum, "nothing was written") from None
    report = DataReport(
        title=f"Data of mix {root.mix.name}",
        parts=parts,
        over_long=root.mix.over_long,
        removed=list(mixture.counts().items()),
        rows=shown_rows(
            mixture,
            tokenizer,
            rows=root.data.rows,
            records=root.data.records,
            seed=root.seed,
            limits=limits_of(root),
            over_long=root.mix.over_long,
        ),
        labeler_agreement=finite(mixture.labeler_agreement()),
        provenance=_provenance(root, mixture, tokenizer),
    )
    page = render(report)
    with own_directory(folder):
        write_json(folder / "data.json", {"task": "data", **report.summary()})
        write_text(folder / "report.html", page)
    console = Console(highlight=False)
    if not console.is_terminal:  # a file or a pipe breaks no lines
        console.width = max(console.width, FILE_WIDTH)
    for table in tables(report):
        console.print(table)
    console.print(f"data: {folder / 'report.html'}", soft_wrap=True, markup=False)
    return {"data/records": float(sum(part.read for part in parts))}


def _require_own(folder: Path) -> None:
    """Raises: UserError if the folder holds anything but an earlier page."""
    items = folder.iterdir() if folder.is_dir() else ()
    names = {item.name for item in items if not is_temporary(item)}
    if names - {"data.json", "report.html"} or (
        names and read_json(folder / "data.json").get("task") != "data"
    ):
        raise UserError(
            f"run_dir must be empty or hold a page of task=data, got {str(folder)!r}, which holds something else"
        )


def survey(
    root: RootConfig, mixture: Mixture, tokenizer: PreTrainedTokenizerFast, stop: Stop
) -> list[Part]:
    """Every part of the mix, read to its end, or as far as `data.records` says where it has none."""
    sizes = {
        (name, kind, split): size
        for name in mixture.sources
        for kind in KINDS
        if kind in mixture.kinds_of(name)
        for split in SPLITS
        if (size := mixture.size_of(name, kind, split)) != 0
    }
    counts = {key: root.data.records if size is None else size for key, size in sizes.items()}
    parts: list[Part] = []
    prompts: list[np.ndarray] = []
    with counted("data", sum(counts.values())) as advance:
        for (name, kind, split), count in counts.items():
            found = Survey(kind, tokenizer)
            for batch in _batches(mixture, (name, kind, split), count):
                stop.check()
                found.add(batch)
                advance(len(batch))
            if repeated := found.repeated():
                again = _batches(mixture, (name, kind, split), count)
                found.count_labels((record for batch in again for record in batch), repeated)
            parts.append(_part(root, sizes, (name, kind, split), found))
            prompts.append(np.asarray(found.prompts))
    return _held_against_train(parts, prompts)


def _held_against_train(parts: Sequence[Part], prompts: Sequence[np.ndarray]) -> list[Part]:
    """The parts; of those that are held out it is known how many of their prompts are in a training split."""

    def in_train(part: Part, asked: np.ndarray) -> int | None:
        trained = [
            others
            for other, others in zip(parts, prompts, strict=True)
            if (other.kind, other.split) == (part.kind, "train")
        ]
        if part.split == "train" or not trained:
            return None
        return int(np.isin(asked, np.concatenate(trained)).sum())

    return [
        replace(part, prompts_in_train=in_train(part, asked))
        for part, asked in zip(parts, prompts, strict=True)
    ]


def _part(
    root: RootConfig,
    sizes: Mapping[tuple[str, str, str], int | None],
    key: tuple[str, str, str],
    found: Survey,
) -> Part:
    name, kind, split = key
    return Part(
        source=name,
        kind=kind,
        split=split,
        read=found.read,
        size=sizes[key],
        mix_share=_share(root.mix.weights, sizes, key),
        lengths=found.lengths,
        limits=limits_of(root)[kind],
        duplicates=found.duplicates,
        near_duplicates=found.near_duplicates,
        comparisons=found.comparisons,
    )


def _share(
    weights: Mapping[str, float],
    sizes: Mapping[tuple[str, str, str], int | None],
    key: tuple[str, str, str],
) -> float | None:
    """How much of its kind a split draws from a source; None where finite sources end before endless ones."""
    name, kind, split = key
    parts = {n: weights.get(n, 1.0) for n, k, s in sizes if (k, s) == (kind, split)}
    counts = {n: sizes[n, kind, split] for n, weight in parts.items() if weight > 0}
    if split != "train" and any(size is not None for size in counts.values()):
        if None in counts.values():
            return None
        parts = {n: counts.get(n) or 0 for n in parts}  # each record once
    total = sum(parts.values())
    return parts[name] / total if total else None


def limits_of(root: RootConfig) -> Limits:
    """Kind → quantity → the setting that says how long it may be in training, and its value."""
    judge = root.reward.model or root.model
    demonstration = {"whole": ("sft.max_length", root.sft.max_length)}
    if root.sft.max_reply_tokens is not None:
        demonstration["reply"] = ("sft.max_reply_tokens", root.sft.max_reply_tokens)
    return {
        "demonstration": demonstration,
        "comparison": {"whole": (root.reward.context_key, judge.context_length)},
        "prompt": {"prompt": ("ppo.max_prompt_tokens", root.ppo.max_prompt_tokens)},
        "text": {"text": ("pretrain.max_length", root.pretrain.max_length)},
    }


def _batches(mixture: Mixture, key: tuple[str, str, str], count: int) -> Iterator[list[Record]]:
    """The first `count` records of one source, in its own order."""
    name, kind, split = key
    indices = iter(range(count))
    while chunk := list(itertools.islice(indices, BATCH)):
        yield [
            validate(
                kind,
                mixture.record_of(name, kind, split, index),
                where=f"mix.sources.{name} {split}[{index}]",
                allow_all_tied=True,
            )
            for index in chunk
        ]


def _provenance(
    root: RootConfig, mixture: Mixture, tokenizer: PreTrainedTokenizerFast
) -> dict[str, str]:
    where = root.model.path or f"trained on this mix ({len(tokenizer)} tokens)"
    data = {
        f"{source}: {what}": str(value)
        for source, found in mixture.identity().items()
        for what, value in found.items()
    }
    return {
        "mix": root.mix.name,
        "tokenizer": where,
        "tokenizer sha256": tokenizer_fingerprint(tokenizer)[:12],
        "seed of the rows shown": str(root.seed),
        "git commit": git_commit() or "not a checkout",
        **data,
    }
