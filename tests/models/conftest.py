"""What the tests of several families share."""

from __future__ import annotations

import pytest
from quick import quick_environment

from graphdsl.builder import BuildOptions


@pytest.fixture(scope="session")
def options(tmp_path_factory: pytest.TempPathFactory) -> BuildOptions:
    return BuildOptions(cache=tmp_path_factory.mktemp("cache"), environment=quick_environment())


@pytest.fixture
def cpu_seeds(request: pytest.FixtureRequest) -> range:
    """The configs of a family that are built: 2 of the 20, or more with --seeds."""
    return range(min(20, max(1, request.config.getoption("--seeds"))))
