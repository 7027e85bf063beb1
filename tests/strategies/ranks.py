"""Two processes on the CPU, forked from this one: nothing is imported twice."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

LIMIT_S = 240


def in_ranks(work: Callable[[Path], Any], folder: Path, count: int = 2) -> list[Any]:
    """What `work(folder)` returns in each of `count` processes that can talk to each other."""
    folder.mkdir(parents=True, exist_ok=True)
    children = [_forked(work, folder, rank, count) for rank in range(count)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    texts = [_text(folder / f"error-{rank}.txt") for rank in range(count)]
    assert codes == [0] * count, "\n".join(texts)
    return [torch.load(folder / f"result-{rank}.pt", weights_only=True) for rank in range(count)]


def _forked(work: Callable[[Path], Any], folder: Path, rank: int, count: int) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        warnings.simplefilter("ignore")
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        os.environ.update({name: str(value) for name, value in own.items()})
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'meeting'}",
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=LIMIT_S),
        )
        torch.save(work(folder), folder / f"result-{rank}.pt")
        code = 0
    except BaseException:
        (folder / f"error-{rank}.txt").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
