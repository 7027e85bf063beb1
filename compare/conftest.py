"""The table at the end of the run."""

from __future__ import annotations

import pytest

from compare.table import LIMIT, printed


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print every row, whatever failed."""
    terminalreporter.section("this project and trl, same weights and tokens", sep="=")
    for line in printed():
        terminalreporter.write_line(line)
    terminalreporter.write_line(
        f"Agreement is a largest relative difference of {LIMIT:.0e} (fp32)."
    )
