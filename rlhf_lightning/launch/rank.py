"""One process of a stage: `python -m rlhf_lightning.launch.rank FOLDER`, started by `parent` or by srun.

Who it is comes from the environment (RANK, LOCAL_RANK, WORLD_SIZE, or SLURM's own), what it does from the orders.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rlhf_lightning.compose import build, load_saved
from rlhf_lightning.config import RootConfig
from rlhf_lightning.data.mixture import Mixture
from rlhf_lightning.errors import Interrupted, Pruned, UserError
from rlhf_lightning.launch.orders import Orders, Outcome
from rlhf_lightning.launch.parent import MEETING, PARENT, PR_SET_PDEATHSIG
from rlhf_lightning.plan import StagePlan
from rlhf_lightning.processes import gather, largest, wait_for_all
from rlhf_lightning.runs import Run, Stop, graceful_signals
from rlhf_lightning.runs.signals import SIGNALS

PARENT_POLL_S = 0.5


def ranks(environ: Mapping[str, str] = os.environ) -> tuple[int, int, int]:
    """This process's rank, its rank on its node, and how many there are."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    if "RANK" not in environ:  # srun has started it
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
    rank, local, count = (int(environ[name]) for name in names)
    return rank, local, count


class AgreedStop(Stop):
    """A stop that all processes obey at the same moment."""

    def check(self) -> None:
        """Raises: Interrupted, in all of them, if any was asked to stop. Call it equally often in each."""
        signum = largest(self.requested or 0)
        if signum:
            raise Interrupted(signum)


class RankRun(Run):
    """The run as its processes see it: the parent owns it and writes its status."""

    def __init__(self, orders: Orders) -> None:
        path, task = Path(orders.path), orders.task
        super().__init__(
            path, task=task, name=orders.name, seed=orders.seed, identity=orders.identity
        )
        self.continued = orders.continued
        self.pruned: dict[str, Any] = {}

    def update(self, metrics: Mapping[str, Any] | None = None) -> None:
        """Nothing: the parent looks whether the run is still its own, and ends this process if not."""

    def prune(self, reason: str, metrics: Mapping[str, Any] | None = None) -> None:
        """The sweep gave the run up; the parent is told with the outcome."""
        self.pruned = dict(metrics or {})


def main() -> None:
    """The outcome is in a file; the exit code is 0 unless the others must be ended."""
    folder = Path(sys.argv[1])
    rank, local, count = ranks()
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(local), "WORLD_SIZE": str(count)})
    _end_with_parent()
    if rank > 0:
        _print_to(folder / f"rank-{rank}.txt")
    orders, root = Orders.read(folder), load_saved(folder / "config.yaml")
    run = RankRun(orders)
    _log_to_console(rank, run)
    try:
        with graceful_signals(AgreedStop()) as stop:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # the parent has held them back
            _join(root, rank, count)
            outcome = Outcome("finished", metrics=_do(orders, root, run, stop))
            wait_for_all()
    except BaseException as error:
        outcome = Outcome.of(error)
        if isinstance(error, Pruned):
            outcome = Outcome("pruned", outcome.message, metrics=run.pruned, time=outcome.time)
        if outcome.kind == "error":
            traceback.print_exception(error)
    for signum in SIGNALS:  # it has ended: what comes now may not keep it from saying how
        signal.signal(signum, signal.SIG_IGN)
    outcome.write(folder, rank)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # not by way of destructors, which may wait for processes that are gone
    os._exit(0 if outcome.kind in ("finished", "interrupted", "pruned") else 1)


def _print_to(file: Path) -> None:
    """One voice on the console; the others' is beside the orders."""
    output = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)


def _do(orders: Orders, root: RootConfig, run: RankRun, stop: Stop) -> dict[str, float]:
    mixture = Mixture(root.mix, root.seed)
    if orders.task == "generate":
        from rlhf_lightning.tasks.generate import run as generate

        plan = StagePlan(
            orders.task,
            orders.round,
            root,
            orders.identity,
            dict(orders.artifacts()),
            Path(orders.path),
        )
        return generate(plan, mixture, stop)
    from rlhf_lightning.tasks.perform import perform

    return perform(
        orders.task,
        orders.round,
        root,
        run,
        orders.artifacts(),
        mixture,
        stop,
        build,
        before_s=orders.duration_s,
    )


def _join(root: RootConfig, rank: int, count: int) -> None:
    """Meet the other processes.

    Raises: UserError if one of them lacks its device.
    """
    import torch

    from rlhf_lightning.tasks.job import device_for

    cuda = device_for(root.trainer).type == "cuda"
    # numbers of the host go by gloo, also where the weights' go by NCCL
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    # a file needs no port; over several nodes srun's job has one
    file = os.environ.get(MEETING)
    torch.distributed.init_process_group(
        backend,
        init_method="env://" if file is None else None,
        store=None if file is None else torch.distributed.FileStore(file, count),  # pyright: ignore[reportPrivateImportUsage]
        rank=rank,
        world_size=count,
        timeout=timedelta(minutes=root.strategy.timeout_minutes),
    )
    kind = "cuda" if cuda else "cpu"
    require_devices(gather((kind, torch.cuda.device_count(), int(os.environ["LOCAL_RANK"]))))
    if cuda:  # known only now: which of the node's devices is this process's
        torch.cuda.set_device(device_for(root.trainer))


def require_devices(found: Sequence[tuple[str, int, int]]) -> None:
    """`found`: kind of device, how many CUDA devices are there, rank on the node, of every process.

    Raises: UserError where the processes would not compute alike, or one has no device.
    """
    kinds = [kind for kind, _, _ in found]
    if len(set(kinds)) > 1:
        without = kinds.index("cpu") + 1
        raise UserError(
            "trainer.accelerator must find CUDA devices in all processes or in none, got none in process"
            f" {without} of {len(found)} and some in process {kinds.index('cuda') + 1}"
        )
    short = [there for kind, there, local in found if kind == "cuda" and local >= there]
    if short:
        raise UserError(
            f"trainer.devices must be <= {min(short)}, the CUDA devices of a node, got"
            f" {max(local for _, _, local in found) + 1}"
        )


def _log_to_console(rank: int, run: Run) -> None:
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if rank == 0 and run.path.is_dir():
        handlers.append(logging.FileHandler(run.log, encoding="utf-8"))
        handlers[1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handlers[0].setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, handlers=handlers)


def _end_with_parent() -> None:
    """Die when the parent dies: another process may own the run a moment later."""
    # it may have died while this one began; srun's tasks have another parent, on another machine
    parent = int(os.environ.get(PARENT) or os.getppid())
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        waiting = threading.Event()
        while os.getppid() == parent:
            waiting.wait(PARENT_POLL_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()


if __name__ == "__main__":
    main()
