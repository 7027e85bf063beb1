"""Python for the processes that this one starts."""

from __future__ import annotations

import os
import sys


def python() -> list[str]:
    """The beginning of a command that looks for modules where this process does.

    `python -m` would find a datasets.py of the working directory before the package; the command `rlhf` does not look
    there.
    """
    looks_here = "" in sys.path or os.getcwd() in sys.path
    return [sys.executable] if looks_here else [sys.executable, "-P"]
