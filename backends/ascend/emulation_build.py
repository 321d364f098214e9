"""The emulation of ATB and ACL as an archive, compiled once and kept."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from graphdsl.errors import ToolError
from graphdsl.staging import publish, staging, sweep

from ..cpu.backend import compiler_version
from ..cpu.features import cpu_features

HERE = Path(__file__).parent / "emulation"
INCLUDE, SOURCES = HERE / "include", HERE / "src"
ARCHIVE, LOG = "libatb_emulation.a", "log_runtime.cpp"
FLAGS = ("-std=c++17", "-O2", "-march=native", "-fopenmp", "-fPIC", "-fvisibility=hidden",
         "-Wall", "-Wextra", "-Werror", "-Wno-psabi")
"""Of -O3 only compiling would be slower: the kernels are written with vectors."""


def build_emulation(folder: Path, environment: Mapping[str, str],
                    flags: Sequence[str] = FLAGS) -> Path:
    """The archive in a folder below `folder`; it is compiled where it is not there yet.

    Raises ToolError, with the command, where a tool is missing or fails.
    """
    key = hashlib.sha256(fingerprint(environment, flags).encode()).hexdigest()[:32]
    home = folder / "emulation" / key
    if (home / ARCHIVE).is_file():
        return home / ARCHIVE
    archiver = shlex.split(environment.get("AR") or "ar")
    _run([*archiver, "--version"], environment)
    if home.parent.is_dir():
        sweep(home.parent)
    with staging(home.parent) as staged:
        units = _units(staged, flags)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda unit: _compile(unit, staged, environment), units))
        _run([*archiver, "rcs", str(staged / ARCHIVE), *map(str, objects)], environment)
        for item in (*objects, staged / "core.cpp"):
            item.unlink()
        publish(staged, home)
    return home / ARCHIVE


def fingerprint(environment: Mapping[str, str], flags: Sequence[str] = FLAGS) -> str:
    """What the archive depends on: the compiler, its flags, the CPU that they stand for, the
    sources."""
    digest = hashlib.sha256()
    for path in sorted(p for p in HERE.rglob("*") if p.suffix in (".h", ".hpp", ".cpp")):
        digest.update(f"{path.relative_to(HERE)}\0".encode() + path.read_bytes() + b"\0")
    cpu = " ".join(sorted(cpu_features())) if "-march=native" in flags else ""
    return "\n".join([compiler_version(environment), *flags, cpu, digest.hexdigest()])


@dataclass(frozen=True)
class _Unit:
    """A source that is compiled by itself, and how."""

    source: Path
    flags: tuple[str, ...]


def _units(folder: Path, flags: Sequence[str]) -> list[_Unit]:
    """The operations, the longest first; the log that a library may bring itself; and all else as
    one source, since reading the headers takes longer than compiling what checks."""
    operations = sorted(SOURCES.glob("ops/*.cpp"), key=lambda path: -path.stat().st_size)
    core = sorted(path for path in SOURCES.glob("*.cpp") if path.name != LOG)
    together = folder / "core.cpp"
    together.write_text("".join(f'#include "{path.name}"\n' for path in core))
    checks = tuple("-O1" if flag == "-O2" else flag for flag in flags)
    return [*(_Unit(path, tuple(flags)) for path in operations),
            _Unit(together, checks), _Unit(SOURCES / LOG, tuple(flags))]


def _compile(unit: _Unit, folder: Path, environment: Mapping[str, str]) -> Path:
    made = folder / f"{unit.source.stem}.o"
    compiler = shlex.split(environment.get("CXX") or "g++")
    _run([*compiler, *unit.flags, f"-I{INCLUDE}", f"-I{SOURCES}", "-c", str(unit.source),
          "-o", str(made)], environment)
    return made


def _run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(command, env=dict(environment), capture_output=True, text=True,
                              check=False)
    except OSError as error:
        raise ToolError(f"the emulation of ATB needs a C++ compiler and ar: {error.strerror}: "
                        f"{command[0]}", shlex.join(command),
                        "install g++ 12 or newer and binutils, or set CXX and AR") from None
    if done.returncode != 0:
        raise ToolError("the emulation of ATB does not compile", shlex.join(command), done.stderr)
