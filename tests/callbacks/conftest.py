"""Warnings that Lightning 2.6 itself gives and that these tests cannot avoid."""

from __future__ import annotations

from pathlib import Path

import pytest

LIGHTNING = (
    r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated:FutureWarning",  # with torch >= 2.13
    r"ignore:The .* does not have many workers",  # these loaders need none
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for text in LIGHTNING:
                item.add_marker(pytest.mark.filterwarnings(text))
