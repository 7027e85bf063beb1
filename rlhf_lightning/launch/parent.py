"""Starting the processes of a stage, passing signals on, and saying in one line what became of them."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_lightning.errors import RunFailed, UserError
from rlhf_lightning.interpreter import python
from rlhf_lightning.launch.orders import Orders, Outcome
from rlhf_lightning.runs import Stop
from rlhf_lightning.runs.files import write_text
from rlhf_lightning.runs.signals import SIGNALS

POLL_S = 0.1
PLACES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that say which process one is: what this one may have inherited is not meant for its own processes."""
CPU_BINDING = "SLURM_CPU_BIND"
"""How variables begin by which srun takes over another step's binding of processes to cores."""
COMMAND = (*python(), "-m", "rlhf_lightning.launch.rank")
PARENT = "RLHF_PARENT"
"""Process id of this process, for its children."""
MEETING = "RLHF_MEETING"
"""The file by which processes of one node find each other."""
PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""
SRUN_SAYS = ("srun: error:", "srun: fatal:")
SRUN_END_S = 60.0
GRACE_S = 10.0
"""How long the others have, when one process has ended, to end by themselves: after a signal all do."""


@dataclass(frozen=True)
class Ranks:
    """How many processes, and where."""

    devices: int
    """On each node."""
    nodes: int = 1

    @property
    def count(self) -> int:
        return self.devices * self.nodes


@dataclass
class Started:
    """One process that this one watches; under srun it stands for all ranks."""

    ranks: list[int]
    process: subprocess.Popen[bytes]
    srun: bool = False
    """Not the process itself, but the srun that has started it, perhaps elsewhere."""
    killed: bool = False
    """By us: it waited for another one that had ended."""
    errors: list[str] = field(default_factory=list)
    """What srun itself said was wrong."""
    reader: threading.Thread | None = None
    """Passes srun's stderr on."""


def in_processes(
    orders: Orders,
    config_yaml: str,
    ranks: Ranks,
    *,
    folder: Path,
    stop: Stop,
    watch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Do a task in `ranks.count` processes and return the metrics that the first one has.

    `folder` holds what they are told and tell; it is removed at the end unless one of them failed. `watch` is called
    now and then; what it raises ends them.
    Raises: what the first process to fail would have raised here; RunFailed where one was killed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    # it may be there: over NFS a file stays that a dying process still holds
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", config_yaml)
    orders.write(folder)
    # where temporary files go: processes of one node meet by locks, which not every shared file system has
    with tempfile.TemporaryDirectory(prefix="rlhf-", ignore_cleanup_errors=True) as meeting:
        started = start(folder, ranks, Path(meeting))
        try:
            _until_all_ended(started, stop, watch)
        finally:
            for one in started:
                one.killed = one.process.poll() is None
                _end(one)
    metrics = _result(folder, started, ranks, stop)
    shutil.rmtree(folder, ignore_errors=True)
    return metrics


def start(folder: Path, ranks: Ranks, meeting: Path) -> list[Started]:
    """The processes: our own children on one node, which meet in `meeting`, those of one `srun` on several.

    Raises: UserError for several nodes outside of a SLURM job, or in one that has fewer.
    """
    command = [*COMMAND, str(folder.resolve())]
    if ranks.nodes > 1:
        return [_under_srun(command, ranks)]
    # a child begins with our mask: it lets the signals through once it listens, and none is lost before
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return [_child(command, rank, ranks, meeting) for rank in range(ranks.count)]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _child(command: list[str], rank: int, ranks: Ranks, meeting: Path) -> Started:
    environment = {
        "OMP_NUM_THREADS": str(max(_cores() // ranks.devices, 1)),
        **_inherited(),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks.count),
        "LOCAL_WORLD_SIZE": str(ranks.devices),
        PARENT: str(os.getpid()),
        MEETING: str(meeting / "meeting"),
    }
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for this process, which passes it on
    )
    return Started([rank], process)


def _cores() -> int:
    """Those that this process may use, where the system tells: a scheduler can have narrowed them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _under_srun(command: list[str], ranks: Ranks) -> Started:
    if "SLURM_JOB_ID" not in os.environ:
        raise UserError(f"trainer.num_nodes must be 1 outside of a SLURM job, got {ranks.nodes}")
    there = int(os.environ.get("SLURM_JOB_NUM_NODES", ranks.nodes))
    if there < ranks.nodes:
        raise UserError(
            f"trainer.num_nodes must be <= {there}, the nodes of the SLURM job, got {ranks.nodes}"
        )
    first = _first_host(os.environ["SLURM_JOB_NODELIST"])
    port = str(_free_port(first, int(os.environ["SLURM_JOB_ID"])))
    # srun gives one core to a process unless it is told, whatever the job has
    cores = max(int(os.environ.get("SLURM_CPUS_ON_NODE", ranks.devices)) // ranks.devices, 1)
    # the step that this process is binds it to its own cores, on its own node: no mask for the ranks
    environment = {k: v for k, v in _inherited().items() if not k.startswith(CPU_BINDING)}
    environment = {"OMP_NUM_THREADS": str(cores), **environment}
    sizes = [
        f"--nodes={ranks.nodes}",
        f"--ntasks={ranks.count}",
        f"--ntasks-per-node={ranks.devices}",
        f"--cpus-per-task={cores}",
        "--distribution=block",  # neighbours in rank on one node, whatever the outer step was told
    ]
    process = subprocess.Popen(
        ["srun", "--kill-on-bad-exit=1", *sizes, *command],
        env={**environment, "MASTER_ADDR": first, "MASTER_PORT": port},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=_end_srun_with_us,  # noqa: PLW1509 - it calls the kernel and nothing else
    )
    started = Started(list(range(ranks.count)), process, srun=True)
    started.reader = threading.Thread(target=_pass_on, args=(process, started.errors), daemon=True)
    started.reader.start()
    return started


def _pass_on(process: subprocess.Popen[bytes], errors: list[str]) -> None:
    """srun's stderr, with that of its tasks, to ours; its own complaints are kept."""
    assert process.stderr is not None
    rest = b""
    with process.stderr as stream:
        while data := os.read(stream.fileno(), 65536):
            with suppress(OSError):  # a full disk behind a log: srun must not end for it
                os.write(2, data)
            *lines, rest = (rest + data).split(b"\n")
            errors += _complaints(lines)
    errors += _complaints([rest])


def _complaints(lines: Iterable[bytes]) -> list[str]:
    words = (line.decode(errors="replace").strip() for line in lines)
    return [line for line in words if line.startswith(SRUN_SAYS)]


def _free_port(host: str, job: int) -> int:
    """One of the job's own, below those that the kernel gives away; tried where this is the host that will listen."""
    first = 12000 + job % 20000
    if host.split(".", maxsplit=1)[0] != socket.gethostname().split(".")[0]:
        return first
    for port in range(first, first + 100):
        with socket.socket() as listening, suppress(OSError):
            listening.bind(("", port))
            return port
    return first


def _end_srun_with_us() -> None:
    """In the child: TERM when this process dies, at which srun ends its tasks on all nodes."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _inherited() -> dict[str, str]:
    others = (*PLACES, PARENT, MEETING, "HYDRA_FULL_ERROR")
    return {k: v for k, v in os.environ.items() if k not in others}


def _first_host(nodes: str) -> str:
    """Of a SLURM node list such as node[3-5,9].

    Raises: UserError where SLURM's commands are not, as in a container.
    """
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"trainer.num_nodes must be 1 where SLURM's commands do not answer, got: {error}"
        ) from error
    return found.stdout.split()[0]


def _until_all_ended(started: list[Started], stop: Stop, watch: Callable[[], None]) -> None:
    passed_on, deadline = False, None
    while any(one.process.poll() is None for one in started):
        if stop.requested is not None and not passed_on:
            passed_on = True
            for one in started:
                # srun passes USR1 on; at TERM it kills its tasks, at the first INT it only says how they are
                _signal(one, signal.SIGUSR1 if one.srun else stop.requested)
        if deadline is None and any(one.process.poll() for one in started):
            deadline = time.monotonic() + GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            return  # they wait for one that is gone
        watch()
        time.sleep(POLL_S)


def _signal(one: Started, signum: int) -> None:
    if one.process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(one.process.pid, signum)


def _end(one: Started) -> None:
    """Nothing of it is left."""
    if one.srun and one.process.poll() is None:
        one.process.terminate()  # killed, it would leave its tasks behind
        with suppress(subprocess.TimeoutExpired):
            one.process.wait(SRUN_END_S)
    _signal(one, signal.SIGKILL)
    one.process.wait()
    if one.reader is not None:
        one.reader.join(GRACE_S)


def _result(folder: Path, started: list[Started], ranks: Ranks, stop: Stop) -> dict[str, float]:
    """The first process's metrics. Raises: why there are none."""
    for one in started:
        code = one.process.returncode
        silent = len(one.ranks) == 1 and Outcome.read(folder, one.ranks[0]) is None
        if silent and code < 0 and not one.killed:
            raise RunFailed(
                f"process {one.ranks[0] + 1} of {ranks.count} was ended by {signal.Signals(-code).name};"
                " the same command goes on from the last checkpoint"
            )
    outcomes = {rank: Outcome.read(folder, rank) for rank in range(ranks.count)}
    ended = {rank: found for rank, found in outcomes.items() if found is not None}
    wrong = {rank: found for rank, found in ended.items() if found.kind != "finished"}
    if wrong:
        rank, outcome = min(wrong.items(), key=lambda item: item[1].time)
        if outcome.kind == "error":
            where = f"process {rank + 1} of {ranks.count}"
            raise RunFailed(f"{where}: {outcome.message} (see {folder})")
        raise outcome.error()
    if len(ended) < ranks.count or ended[0].metrics is None:
        stop.check()
        codes = sorted({one.process.returncode for one in started})
        said = "".join(f"{error}; " for one in started for error in one.errors[:1])
        raise RunFailed(
            f"{ranks.count - len(ended)} of {ranks.count} processes ended without a word"
            f" ({said}exit codes {codes}; see {folder})"
        )
    return ended[0].metrics
