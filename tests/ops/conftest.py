"""The random source of the property tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=range(4))
def generator(request: pytest.FixtureRequest) -> torch.Generator:
    """A source of random shapes and numbers: four draws with fixed seeds."""
    return torch.Generator().manual_seed(request.param)
