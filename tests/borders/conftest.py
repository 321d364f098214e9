"""Where the borders' operators are built."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from graphdsl.builder import BuildOptions


@pytest.fixture(scope="session")
def options(tmp_path_factory: pytest.TempPathFactory) -> BuildOptions:
    cache = tmp_path_factory.mktemp("cache")
    return BuildOptions(cache=cache, environment=dict(os.environ))


@pytest.fixture(scope="session")
def class_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the C++ behind torch.classes is compiled, once for all tests of a process."""
    return tmp_path_factory.getbasetemp() / "torch-class"
