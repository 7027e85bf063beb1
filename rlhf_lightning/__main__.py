"""The one way in: `rlhf`, or `python -m rlhf_lightning`."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import psutil
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from rlhf_lightning import compose
from rlhf_lightning.compose_errors import JobsFailed, is_config_error, one_line
from rlhf_lightning.errors import Interrupted, Pruned, RunFailed, UserError

BUSY_CORES = 0.3
"""Work of others, in cores, from which on a machine counts as shared."""

_failures: list[BaseException] = []
"""Why the single run ended, for `main`: Hydra would print a line of its own about it."""


_users_full_error = os.environ.get("HYDRA_FULL_ERROR")
"""What processes that a job starts inherit."""


@contextmanager
def _full_error(value: str | None) -> Iterator[None]:
    """HYDRA_FULL_ERROR for a while: with 1 Hydra raises instead of printing and leaving."""
    before = os.environ.pop("HYDRA_FULL_ERROR", None)
    if value is not None:
        os.environ["HYDRA_FULL_ERROR"] = value
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR", None)
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def run(cfg: DictConfig) -> dict[str, Any]:
    """Check the config, then do the task; returns its metrics.

    Raises: UserError, RunFailed, Interrupted.
    """
    root = compose.check(cfg)
    if root.task == "runs":
        from rich.console import Console

        from rlhf_lightning.runs.listing import runs_table

        console = Console()
        if not console.is_terminal:  # a file or a pipe breaks no lines
            console.width = max(console.width, 200)
        console.print(runs_table(Path(root.outputs)))
        return {}
    if root.task == "sweep_report":
        from rlhf_lightning.tasks import sweep_report

        return sweep_report.run(root)
    from rlhf_lightning.pipeline import run_task

    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.RUN:
        _refuse_what_a_single_run_ignores(hydra_config.runtime.choices)
    overrides = [str(item) for item in HydraConfig.get().overrides.task]
    return run_task(root, overrides=overrides)


IN_A_SINGLE_RUN = {"hydra/launcher": ("basic",), "hydra/sweeper": ("basic", "local")}
"""Group → the options that stand there by default; a single run uses none."""


def _refuse_what_a_single_run_ignores(choices: Mapping[str, Any]) -> None:
    for key, defaults in IN_A_SINGLE_RUN.items():
        if choices.get(key) not in (None, *defaults):
            raise UserError(
                f"{key}={choices[key]} must be used with -m, got a single run, which has none"
            )


def job(cfg: DictConfig) -> dict[str, Any] | None:
    """What Hydra calls, once for every job."""
    try:
        with _full_error(_users_full_error):
            return run(cfg)
    except Interrupted as error:
        # not an Exception: Hydra would go on with the next job
        print(f"rlhf: {error}", file=sys.stderr)
        raise SystemExit(128 + error.signum) from None
    except Pruned as error:
        print(f"rlhf: pruned: {error}", file=sys.stderr)
        return None
    except BrokenPipeError:
        raise  # nobody reads on: `main` ends quietly
    except Exception as error:
        if HydraConfig.get().mode == RunMode.RUN:
            _failures.append(error)
            return None
        name = " ".join(str(item) for item in HydraConfig.get().overrides.task)
        report(error, name)
        raise


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Of an OSError: the disk, the user's share of it, or the largest file that the user may write."""


def report(error: BaseException, job_name: str = "") -> int:
    """Print what went wrong, one line if it is the user's to mend, and return the exit code."""
    prefix = f"error: {job_name}: " if job_name else "error: "
    if isinstance(error, UserError | RunFailed):
        print(f"{prefix}{' '.join(str(error).split())}", file=sys.stderr)
    elif is_config_error(error):
        print(f"{prefix}{one_line(error)}", file=sys.stderr)
    elif isinstance(error, OSError) and error.errno in FULL:
        place = f": {error.filename}" if error.filename else ""
        line = f"{error.strerror}{place}; with room the same command continues what is not finished"
        print(f"{prefix}{line}", file=sys.stderr)
    else:
        traceback.print_exception(error)
        print(f"{prefix}{type(error).__name__}: {error}", file=sys.stderr)
    return 2 if is_config_error(error) else 1


def saved_config_first(argv: list[str]) -> list[str]:
    """Let `--config-dir DIR --config-name NAME` run DIR/NAME.yaml, whatever it is called.

    Hydra searches its own folder first, where a run's `config` would never be found: DIR becomes the main folder and
    our groups the one that is added.
    """
    values: dict[str, str] = {}
    rest: list[str] = []
    items = iter(argv)
    for item in items:
        flag, equals, value = item.partition("=")
        name = {"-cd": "--config-dir", "-cn": "--config-name"}.get(flag, flag)
        if name in ("--config-dir", "--config-name"):
            values[name] = value if equals else next(items, "")
        else:
            rest.append(item)
    folder, name = values.get("--config-dir"), values.get("--config-name")
    if not folder or not (Path(folder) / f"{name or 'config'}.yaml").is_file():
        return argv
    primary = str(Path(folder).resolve())
    ours = str(compose.conf_dir())
    return [
        "--config-path",
        primary,
        "--config-name",
        name or "config",
        "--config-dir",
        ours,
        *rest,
    ]


def quoted_prompt(argv: list[str]) -> list[str]:
    """`prompt=Hello, fox!` as text, whatever is in it: Hydra would read commas, colons and quotes as its grammar.

    A value that the user quoted for Hydra stays, and all of them in a multirun, where `prompt=a,b` are two.
    """
    if {"-m", "--multirun"} & set(argv):
        return argv
    return [_quoted(item) if item.startswith("prompt=") else item for item in argv]


def _quoted(item: str) -> str:
    key, _, value = item.partition("=")
    theirs = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if value in ("", "null") or theirs:
        return item
    kept = compose.escaped(value)
    # in Hydra's quotes a backslash counts only before a quote, and the closing one is one too
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', kept)
    tail = len(escaped) - len(escaped.rstrip("\\"))
    return f'{key}="{escaped}{escaped[len(escaped) - tail :]}"'


def flags_first(argv: list[str]) -> list[str]:
    """`task=sft -m seed=0,1` as `-m task=sft seed=0,1`: Hydra reads no override after a flag that follows one."""
    flags = [item for item in argv if item in ("-m", "--multirun")]
    return [*flags, *(item for item in argv if item not in flags)]


def _choose_how_threads_wait() -> None:
    """OpenMP's threads spin where the machine is idle, and sleep where others use it; the user's own word counts.

    A thread that spins on a shared core keeps its partner from it; one that sleeps on a virtual machine is woken
    late. It is read when torch is loaded, and changes no result.
    """
    if os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        return
    busy = psutil.cpu_percent(interval=0.1) / 100 * (os.cpu_count() or 1)
    if busy > BUSY_CORES:
        os.environ["OMP_WAIT_POLICY"] = "passive"


def main() -> None:
    """The console script. Exit codes: 0 done, 2 bad input, 1 failed, 128 + signal stopped by a signal."""
    _choose_how_threads_wait()
    full_error = _users_full_error == "1"
    compose.register()
    sys.argv[1:] = flags_first(saved_config_first(quoted_prompt(sys.argv[1:])))
    _failures.clear()
    try:
        with _full_error("1"):
            entry = hydra.main(str(compose.conf_dir()), "config", version_base="1.3")
            entry(job)()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # `rlhf --help | head`: nobody reads on, and Python must not try to flush at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except Exception as error:
        if full_error and not isinstance(error, JobsFailed):
            raise
        if isinstance(error, RunFailed):
            raise SystemExit(report(error)) from None
        # the job's own errors do not come this way: this is Hydra, composing
        raise SystemExit(report(UserError(one_line(error, sys.argv[1:])))) from None
    finally:
        logging.shutdown()
    if _failures:
        if full_error:
            raise _failures[0]
        raise SystemExit(report(_failures[0]))


if __name__ == "__main__":
    main()
