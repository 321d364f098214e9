"""The emulation of ATB, compiled once for all tests."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from opscase import Ops, link_ops
from sanitizecase import Sanitized

from graphdsl.backends.ascend.emulation_build import build_emulation


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder in which the archive is: builds that are given it compile only their own
    sources. Workers of one session share it."""
    folder = tmp_path_factory.getbasetemp().parent / "ascend-cache"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build_emulation(folder, os.environ)
    return folder


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Sanitized:
    """Builds under sanitizers: what is compiled once is shared by the tests."""
    return Sanitized(tmp_path_factory.mktemp("sanitized"))


@pytest.fixture(scope="session")
def ops(emulation: Path, tmp_path_factory: pytest.TempPathFactory) -> Ops:
    """Single operations of the emulation."""
    archive = build_emulation(emulation, os.environ)
    return Ops(link_ops(archive, tmp_path_factory.mktemp("ops")))
