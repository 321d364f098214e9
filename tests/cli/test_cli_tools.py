"""Compilers that are missing or fail, full disks, damaged caches."""

from __future__ import annotations

import errno
import os
import re
import resource
from pathlib import Path
from typing import Any

import pytest
from clicase import SMALL, Cli, start, tree

import graphdsl


@pytest.fixture(autouse=True)
def layer(here: Path) -> None:
    (here / "layer.py").write_text(SMALL)


def leftovers(cache: Path) -> list[str]:
    return sorted(tree(cache)) if cache.exists() else []


def test_no_compiler(cli: Cli, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++ -pipe")
    result = cli("build", "layer.py")
    assert result.code == 3
    assert "error: no C++ compiler: No such file or directory: /nowhere/g++\n" in result.err
    assert "command: /nowhere/g++ -pipe" in result.err
    assert leftovers(own_cache) == []


def script(path: Path, text: str) -> Path:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def test_failing_compiler(here: Path, cli: Cli, own_cache: Path,
                          monkeypatch: pytest.MonkeyPatch) -> None:
    broken = script(here / "broken", 'case "$*" in *--version*) echo "broken 1.0"; exit 0;; esac\n'
                                     "for i in $(seq 30); do echo failure $i >&2; done; exit 1\n")
    monkeypatch.setenv("CXX", str(broken))
    result = cli("build", "layer.py")
    assert result.code == 3
    lines = result.err.splitlines()
    assert lines[0] == "error: the C++ compiler failed"
    assert lines[1].startswith(f"  command: {broken} -std=c++17 ")
    assert lines[2:] == [f"  | failure {i}" for i in range(1, 21)] + ["  | ... 10 more lines"]
    assert leftovers(own_cache) == []


def test_compiler_that_does_not_run(here: Path, cli: Cli, own_cache: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(script(here / "broken", "echo no licence >&2; exit 1\n")))
    result = cli("build", "layer.py")
    assert result.code == 3
    assert "the C++ compiler does not run" in result.err
    assert "  | no licence" in result.err


def test_file_that_cannot_grow(own_cache: Path) -> None:
    """A limit on the size of files stops the build as a full disk would, at any of its writes."""
    for limit in (0, 100, 5_000, 20_000):
        process = start("build", "layer.py", limit=(resource.RLIMIT_FSIZE, limit))
        out, err = process.communicate()
        assert process.returncode in (2, 3), err
        assert "error: " in err
        assert "Traceback" not in out + err
        assert leftovers(own_cache) == []
    process = start("build", "layer.py")
    assert process.communicate()[1] == ""
    assert process.returncode == 0


@pytest.mark.parametrize("out", ["", "out"])
def test_full_disk(out: str, here: Path, cli: Cli, own_cache: Path,
                   monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th write finds the disk full, for every n."""
    argv = ["build", "layer.py", *(["--out", out] if out else [])]
    plain = Path.write_text
    for allowed in (0, 1, 3):
        count = 0

        def write(path: Path, *args: Any, allowed: int = allowed, **keywords: Any) -> int:
            nonlocal count
            count += 1
            if count > allowed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return plain(path, *args, **keywords)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", write)
            result = cli(*argv)
        assert result.code == 2
        assert re.search(r"error: .+: No space left on device\n  hint: make room", result.err)
        assert leftovers(own_cache) == []
        assert not (here / "out").exists()
    assert cli(*argv).code == 0


def test_corrupt_entry_is_built_again(cli: Cli, own_cache: Path) -> None:
    built = Path(cli("build", "layer.py").last.rpartition(": ")[2])
    for name in ("library.so", "library.sha256", "manifest.json", "src/Small.cpp"):
        good = (built / name).read_bytes()
        (built / name).unlink()  # a library in use must not be written to
        if name != "library.sha256":
            (built / name).write_bytes(good[: len(good) // 2])
        result = cli("build", "layer.py")
        assert result.code == 0
        assert "is corrupt and is built again" in result.out, name
        assert graphdsl.load(built).name == "Small"
        assert (built / name).read_bytes() == good
    assert "found in the cache" in cli("build", "layer.py").out


def test_what_a_killed_build_left_goes_after_a_day(cli: Cli, own_cache: Path) -> None:
    old, new = own_cache / ".building-old", own_cache / ".building-new"
    for folder in (old, new):
        (folder / "src").mkdir(parents=True)
    os.utime(old, (0, 0))
    assert cli("build", "layer.py").code == 0
    assert new.exists()
    assert not old.exists()


def test_cache_in_the_users_folder(here: Path, cli: Cli, tmp_path: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAPHDSL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert str(tmp_path / "xdg" / "graphdsl") in cli("build", "layer.py").last
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert str(tmp_path / "home" / ".cache" / "graphdsl") in cli("build", "layer.py").last
