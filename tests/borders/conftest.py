"""Where the borders' operators are built."""

from __future__ import annotations

import pytest
from quick import quick_environment

from graphdsl.builder import BuildOptions


@pytest.fixture(scope="session")
def options(tmp_path_factory: pytest.TempPathFactory) -> BuildOptions:
    cache = tmp_path_factory.mktemp("cache")
    return BuildOptions(cache=cache, environment=quick_environment())
