"""What is compiled once for all tests of the ascend backend."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from opscase import Ops, link_ops
from sanitizecase import Sanitized

from graphdsl.backends.ascend.emulation_build import build_emulation


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Sanitized:
    """Builds under sanitizers: what is compiled once is shared by the tests."""
    return Sanitized(tmp_path_factory.mktemp("sanitized"))


@pytest.fixture(scope="session")
def ops(emulation: Path, tmp_path_factory: pytest.TempPathFactory) -> Ops:
    """Single operations of the emulation."""
    archive = build_emulation(emulation, os.environ)
    return Ops(link_ops(archive, tmp_path_factory.mktemp("ops")))


@pytest.fixture
def small_soc(ops: Ops) -> Iterator[Ops]:
    """A 310P for one test."""
    ops.soc("Ascend310P3")
    yield ops
    ops.soc("Ascend910B")
