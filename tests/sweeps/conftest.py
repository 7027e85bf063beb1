from __future__ import annotations

import os

import pytest

from tests.sweeps.searching import ROOT


@pytest.fixture(autouse=True)
def the_trials_find_this_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever version is installed."""
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{before}" if before else str(ROOT))
