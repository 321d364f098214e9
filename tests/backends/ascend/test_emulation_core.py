"""ATB's behaviour around single operations, in C++ as a user writes it: a test for every fact."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from emulationcase import SANITIZE, SANITIZED, compile_program, names, run_program

from graphdsl.backends.ascend.emulation_build import FLAGS, build_emulation
from graphdsl.errors import ToolError

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
def test_core_sanitized(emulation: Path, tmp_path: Path) -> None:
    archive = build_emulation(emulation, os.environ, SANITIZED)
    run_program(compile_program("core", archive, tmp_path, SANITIZE))


@needs_compiler
def test_an_archive_is_built_once(emulation: Path) -> None:
    archive = build_emulation(emulation, os.environ)
    before = archive.stat().st_mtime_ns
    assert build_emulation(emulation, os.environ) == archive
    assert archive.stat().st_mtime_ns == before
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]


def test_a_compiler_that_is_not_there_is_named(tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": "no-such-compiler"}
    with pytest.raises(ToolError, match="no-such-compiler"):
        build_emulation(tmp_path / "cache", environment)
    assert not (tmp_path / "cache").exists()


@needs_compiler
def test_an_archiver_that_is_not_there_is_named(tmp_path: Path) -> None:
    environment = {**os.environ, "AR": "no-such-archiver"}
    with pytest.raises(ToolError, match=r"needs a C\+\+ compiler and ar: .*: no-such-archiver"):
        build_emulation(tmp_path / "cache", environment)
    assert not (tmp_path / "cache").exists()


@needs_compiler
def test_flags_that_the_compiler_refuses_are_shown(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"does not compile\n  command: g\+\+ .*--no-such-flag"):
        build_emulation(tmp_path / "cache", os.environ, (*FLAGS, "--no-such-flag"))
    assert not (tmp_path / "cache").exists()
