"""Child processes look for modules where their parent does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning.interpreter import python

SAYS = "import json; print(json.__file__)"


@pytest.mark.parametrize("there", [True, False])
def test_a_file_of_the_working_directory_hides_a_module_only_where_it_does_so_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    (tmp_path / "json.py").write_text("")
    monkeypatch.chdir(tmp_path)
    path = [entry for entry in sys.path if entry not in ("", str(tmp_path))]
    monkeypatch.setattr(sys, "path", ["", *path] if there else path)
    done = subprocess.run([*python(), "-c", SAYS], capture_output=True, text=True, check=True)
    assert (done.stdout.strip() == str(tmp_path / "json.py")) is there
