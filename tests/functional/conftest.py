"""Ragged random batches for comparison with plain Python loops."""

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=range(5))
def lengths(request: pytest.FixtureRequest) -> list[int]:
    """Real tokens of each row; 1 and the full width are among them."""
    draws = torch.randint(1, 8, (6,), generator=torch.Generator().manual_seed(request.param))
    return [1, 7, *draws.tolist()]


@pytest.fixture
def mask(lengths: list[int]) -> Tensor:
    return torch.arange(7) < torch.tensor(lengths).unsqueeze(1)  # (8, 7)


@pytest.fixture
def draw(rng: torch.Generator) -> Callable[..., Tensor]:
    return lambda *shape: torch.randn(*shape, generator=rng)


@pytest.fixture
def unchecked() -> Callable[..., Callable]:
    """The function without beartype, as in production: only its own checks are left."""
    return inspect.unwrap
