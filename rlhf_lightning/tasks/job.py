"""What a task works with, and the few things that all of them do."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.config import LoRAConfig, ModelConfig, RootConfig
from rlhf_lightning.data.mixture import Mixture
from rlhf_lightning.data.tokenizer import prepare_tokenizer, tokenizer_fingerprint, train_tokenizer
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.adapters import (
    FOLDER,
    TRAINED,
    add_adapter,
    has_adapters,
    merge_adapter,
    save_adapter,
)
from rlhf_lightning.models.loading import load_tokenizer, parameters_of, save
from rlhf_lightning.processes import is_first, rank, wait_for_all, world_size
from rlhf_lightning.runs import Artifact, Run, Stop, new_artifact
from rlhf_lightning.strategies.weights import whole_in_first

TOKENIZER_RECORDS = 2000
"""Texts, and as many demonstrations, that a new tokenizer is trained on."""


@dataclass
class Job:
    """One claimed run and everything its task needs."""

    task: str
    round: int
    root: RootConfig
    run: Run
    parents: Mapping[str, Artifact]
    """Role → verified artifact."""
    mixture: Mixture
    stop: Stop
    build: Callable[..., Any]
    """Makes the object of a `_target_` node; keyword arguments win."""

    def seed(self, purpose: str) -> int:
        """A seed of its own for each use, stage and round."""
        return seed_of(self.root.seed, self.task, self.round, purpose)

    def seed_everything(self) -> None:
        """Python's, numpy's and torch's global generators; each process has its own (dropout draws from them)."""
        seed = self.seed(f"global of process {rank()}" if rank() else "global")
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - other people's code draws from it
        torch.manual_seed(seed)

    @cached_property
    def loggers(self) -> list[Any]:
        """The configured loggers, made once a run; a name that is null becomes the run's.

        Raises: UserError if a logger's package is not installed.
        """
        made = []
        own = f"{self.task}-{self.run.path.name}"
        for key, node in (self.root.logger or {}).items():
            if node is None:  # switched off
                continue
            name = {"name": own} if node.get("name", "") is None else {}
            try:
                made.append(self.build(node, save_dir=str(self.run.tensorboard), **name))
            except ModuleNotFoundError as error:
                raise UserError(
                    f"logger.{key} must have its package installed, got: {error}"
                ) from error
        return made

    @cached_property
    def callbacks(self) -> list[Any]:
        """The configured callbacks, made once a run; one that is null is switched off.

        Raises: UserError if one does not take its arguments.
        """
        nodes = (self.root.callbacks or {}).items()
        return [self._made(f"callbacks.{n}", node) for n, node in nodes if node is not None]

    def require_buildable(self) -> None:
        """Make what the config names for training, before anything is loaded or sampled.

        Raises: UserError if a callback or the optimizer does not take its arguments.
        """
        _ = self.callbacks
        node = getattr(self.root, self.task).optimizer
        self._made(f"{self.task}.optimizer", node, params=[torch.nn.Parameter(torch.zeros(1, 1))])

    def _made(self, key: str, node: Mapping[str, Any], **kwargs: Any) -> Any:
        try:
            return self.build(node, **kwargs)
        except (UserError, ModuleNotFoundError) as error:
            raise UserError(f"{key}: {error}") from error

    def optimizer(
        self, node: Mapping[str, Any]
    ) -> Callable[[Iterable[Any]], torch.optim.Optimizer]:
        """Parameters or groups → the optimizer of a `_target_` node."""
        build = partial(self.build, node)
        return lambda params: build(params=params)

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator with the seed of `purpose`."""
        return torch.Generator().manual_seed(self.seed(purpose))

    def say(self, message: str) -> None:
        """One line for the console and log.txt."""
        import logging

        logging.getLogger("rlhf_lightning").info("%s: %s", self.task, message)

    def say_share(self, kind: str, count: int, *, key: str) -> None:
        """Tell where `key` is less than there is to learn from."""
        size = self.mixture.size(kind, "train")
        if size is not None and count < size:
            self.say(f"{key}={count} of {size} records ({kind}) for training are used")

    def round_start(self, kind: str) -> int:
        """The first training record of this round: rounds of an endless mix never see the same ones, those of a finite
        one begin a pass of their own."""
        start, size = (self.round - 1) * 2**24, self.mixture.size(kind, "train")
        return start if size is None else -(-start // size) * size


def seed_of(seed: int, task: str, round_: int, purpose: str) -> int:
    """The seed of one use: any change of one of the four gives another."""
    text = f"{seed}/{task}/{round_}/{purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def parent_tokenizer(job: Job, role: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a parent's artifact, with what training needs."""
    tokenizer = load_tokenizer(job.parents[role].path, job.root.model)
    prepare_tokenizer(tokenizer)
    return tokenizer


def new_tokenizer(job: Job) -> PreTrainedTokenizerFast:
    """The model's own tokenizer."""
    model = job.root.model
    found = own_tokenizer(model, job.mixture)
    if model.path is None and len(found) < model.vocab_size:
        job.say(f"model.vocab_size={model.vocab_size}, but the texts give {len(found)} tokens")
    return found


def own_tokenizer(model: ModelConfig, mixture: Mixture) -> PreTrainedTokenizerFast:
    """The tokenizer of `model.path`, or one that is trained on the mix's text."""
    if model.path is not None:
        tokenizer = load_tokenizer(model.path, model)
        prepare_tokenizer(tokenizer)
        return tokenizer
    return train_tokenizer(_texts(mixture), vocab_size=model.vocab_size)


def _texts(mixture: Mixture) -> Iterator[str]:
    """Text to train a tokenizer on, of this seed's order."""
    texts = ()
    if mixture.has("text"):
        texts = (r["text"] for r in _some(mixture, "text"))
    spoken: Iterable[str] = ()
    if mixture.has("demonstration"):
        spoken = (m["content"] for r in _some(mixture, "demonstration") for m in r["messages"])
    elif not texts and mixture.has("comparison"):  # a reward model of rankings alone
        spoken = (t for r in _some(mixture, "comparison") for t in _texts_of(r))
    return chain(texts, spoken)


def _texts_of(comparison: dict[str, Any]) -> list[str]:
    return [*(m["content"] for m in comparison["prompt"]), *comparison["completions"]]


def _some(mixture: Mixture, kind: str) -> Iterator[dict[str, Any]]:
    size = mixture.size(kind, "train")
    count = TOKENIZER_RECORDS if size is None else min(size, TOKENIZER_RECORDS)
    return mixture.records(kind, "train", count)


def device_for(trainer: Mapping[str, Any] | None) -> torch.device:
    """The device that the Trainer's keys name.

    Raises: UserError if it is asked for and not there.
    """
    trainer = trainer or {}
    wanted = trainer.get("accelerator", "auto")
    if wanted in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            f"trainer.accelerator must be auto or cpu where torch finds no CUDA device, got {wanted}"
        )
    if wanted != "cpu" and not torch.cuda.is_available() and os.environ.get("SLURM_JOB_GPUS"):
        raise UserError(
            "trainer.accelerator must be cpu where torch finds no CUDA device, got a SLURM job with GPUs"
            f" ({os.environ['SLURM_JOB_GPUS']})"
        )
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    devices = trainer.get("devices", 1)  # a list holds the index of the one device
    own = int(os.environ.get("LOCAL_RANK", "0")) if world_size() > 1 else 0
    return torch.device("cuda", devices[0] if isinstance(devices, list) else own)


def require_same_tokenizer(a: Artifact, b: Artifact, *, key: str) -> None:
    """Raises: UserError where two artifacts that must read the same tokens do not."""
    if tokenizer_fingerprint(a.path) != tokenizer_fingerprint(b.path):
        raise UserError(
            f"{key} must have the tokenizer of the policy {str(a.path)!r}, got {str(b.path)!r} with another one"
        )


def add_trained_adapter(
    job: Job, model: PreTrainedModel, lora: LoRAConfig | None, *, purpose: str = "adapter"
) -> None:
    """Freeze the model and train an adapter on it, if the stage's settings say so; `purpose` is that of its seed."""
    if lora is not None:
        try:
            add_adapter(model, lora, TRAINED, seed=job.seed(purpose))
        except (
            UserError
        ) as error:  # `lora.targets must be ...`: of which stage, only this place knows
            raise UserError(f"{job.task}.{error}") from error
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        job.say(f"{trained:,} of {parameters_of(model):,} parameters are trained (adapters)")


def _base(job: Job) -> str:
    """What an adapter of this run belongs on."""
    parent = job.parents.get("policy" if job.task == "ppo" else "init")
    return str(parent.path) if parent is not None else str(job.root.model.path)


def export(
    job: Job,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    metrics: Mapping[str, float],
    *,
    how_to_load: str = "AutoModelForCausalLM",
) -> Path:
    """Write the run's artifact: the model, whose adapter is merged into it and kept beside it if it has one.

    The first process writes, whatever the strategy, one ordinary folder.
    """
    whole_in_first(model)
    if is_first():
        _write_artifact(job, model, tokenizer, metrics, how_to_load)
    wait_for_all()
    return job.run.artifact


def _write_artifact(
    job: Job,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    metrics: Mapping[str, float],
    how_to_load: str,
) -> None:
    parents = {role: parent.sha256 for role, parent in job.parents.items()}
    job.run.update()  # ends a process whose run another one has taken over
    with new_artifact(
        job.run.artifact,
        stage=job.task,
        parents=parents,
        config=job.run.identity,
        metrics=dict(metrics),
        how_to_load=how_to_load,
    ) as folder:
        if has_adapters(model):
            save_adapter(model, TRAINED, folder / FOLDER, base=_base(job))
            merge_adapter(model, TRAINED)
        save(model, tokenizer, folder)
