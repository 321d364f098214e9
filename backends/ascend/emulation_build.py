"""The emulation of ATB and ACL as an archive, compiled once and kept."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from graphdsl.errors import ToolError
from graphdsl.staging import publish, staging, sweep

from ..cpu.backend import compiler_version
from ..cpu.features import cpu_features

HERE = Path(__file__).parent / "emulation"
INCLUDE, SOURCES = HERE / "include", HERE / "src"
ARCHIVE = "libatb_emulation.a"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-fvisibility=hidden",
         "-Wall", "-Wextra", "-Werror")


def build_emulation(folder: Path, environment: Mapping[str, str],
                    flags: Sequence[str] = FLAGS) -> Path:
    """The archive in a folder below `folder`; it is compiled where it is not there yet.

    Raises ToolError, with the command, where a tool is missing or fails.
    """
    key = hashlib.sha256(fingerprint(environment, flags).encode()).hexdigest()[:32]
    home = folder / "emulation" / key
    if (home / ARCHIVE).is_file():
        return home / ARCHIVE
    if home.parent.is_dir():
        sweep(home.parent)
    with staging(home.parent) as staged:
        units = sorted(SOURCES.rglob("*.cpp"))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda unit: _compile(unit, staged, environment, flags), units))
        archiver = shlex.split(environment.get("AR") or "ar")
        _run([*archiver, "rcs", str(staged / ARCHIVE), *map(str, objects)], environment)
        for item in objects:
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


def _compile(unit: Path, folder: Path, environment: Mapping[str, str],
             flags: Sequence[str]) -> Path:
    made = folder / (unit.relative_to(SOURCES).with_suffix("").as_posix().replace("/", "_") + ".o")
    compiler = shlex.split(environment.get("CXX") or "g++")
    _run([*compiler, *flags, f"-I{INCLUDE}", f"-I{SOURCES}", "-c", str(unit), "-o", str(made)],
         environment)
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
