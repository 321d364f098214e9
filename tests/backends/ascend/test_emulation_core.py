"""ATB's behaviour around single operations, in C++ as a user writes it: a test for every fact."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from emulationcase import compile_program, names, run_program
from sanitizecase import SANITIZE, Sanitized

from graphdsl.backends.ascend.emulation_build import build_emulation

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="session")
def program(emulation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = build_emulation(emulation, os.environ)
    return compile_program("core", archive, tmp_path_factory.mktemp("core"))


@needs_compiler
@pytest.mark.parametrize("name", names("core"))
def test_core(name: str, program: Path) -> None:
    run_program(program, name)


@needs_compiler
@pytest.mark.full
@pytest.mark.sanitize
def test_core_sanitized(sanitized: Sanitized, tmp_path: Path) -> None:
    archive = build_emulation(sanitized.cache, sanitized.environment)
    run_program(compile_program("core", archive, tmp_path, SANITIZE))
