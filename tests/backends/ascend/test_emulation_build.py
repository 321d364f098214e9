"""The archive of the emulation: made once, kept whole, and what is said meanwhile."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from graphdsl.backends.ascend.emulation_build import FLAGS, build_emulation
from graphdsl.errors import ToolError
from graphdsl.staging import staging

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
ROOT = Path(__file__).parents[3]
COMPILER = """\
#!/bin/sh
while [ $# -gt 0 ]; do
  [ "$1" = -o ] && : > "$2"
  shift
done
"""


@pytest.fixture
def pretending(tmp_path: Path) -> dict[str, str]:
    """An environment whose compiler makes empty objects."""
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    return {**os.environ, "CXX": str(compiler)}


@needs_compiler
def test_an_archive_is_built_once(pretending: dict[str, str], tmp_path: Path) -> None:
    said: list[str] = []

    def built(flags: Sequence[str] = FLAGS) -> Path:
        return build_emulation(tmp_path / "cache", pretending, flags,
                               lambda stage, text: said.append(f"{stage}: {text}"))

    archive = built()
    assert said[0] == "compile: the emulation, once: it is kept in the cache"
    assert re.fullmatch(r"compile: the emulation took [\d.]+ s", said[1])
    before = archive.stat().st_mtime_ns
    assert built() == archive
    assert archive.stat().st_mtime_ns == before
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]
    assert len(said) == 2
    assert built((*FLAGS, "-g")) != archive
    assert len(said) == 4


@needs_compiler
def test_an_archive_that_is_gone_is_built_again(pretending: dict[str, str],
                                                tmp_path: Path) -> None:
    archive = build_emulation(tmp_path / "cache", pretending)
    archive.unlink()
    assert build_emulation(tmp_path / "cache", pretending) == archive
    assert archive.is_file()


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


def test_what_another_build_removes_hides_no_failure(tmp_path: Path) -> None:
    def failing() -> None:
        with staging(tmp_path / "cache" / "emulation"):
            shutil.rmtree(tmp_path / "cache")
            raise ToolError("why")

    with pytest.raises(ToolError, match="why"):
        failing()


@needs_compiler
@pytest.mark.full
def test_two_builds_at_once_with_an_empty_cache(tmp_path: Path) -> None:
    """Both end with a library that loads, and one archive and one runner are left."""
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nexec g++ "$@" -O0\n')
    compiler.chmod(0o755)
    cache = tmp_path / "cache"
    environment = {**os.environ, "CXX": str(compiler), "GRAPHDSL_CACHE": str(cache)}
    command = [sys.executable, "-m", "graphdsl", "run", str(ROOT / "examples" / "llama_layer.py"),
               "--backend", "ascend"]
    for size in ("hidden=64", "heads=4", "kv_heads=2", "head_dim=16", "ffn=96"):
        command += ["--set", size]
    started = [subprocess.Popen([*command, "--tokens", tokens], env=environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
               for tokens in ("1", "5")]
    printed = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], printed
    left = sorted(str(path.relative_to(cache)) for path in cache.rglob("*")
                  if path.suffix in (".a", ".o") or path.name.startswith("."))
    assert [Path(path).name for path in left] == ["libatb_emulation.a", "runner.o"]
