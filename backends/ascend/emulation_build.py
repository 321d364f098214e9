"""The emulation of ATB and ACL as an archive, compiled once and kept."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from graphdsl.backend import Progress, quiet
from graphdsl.compiler import Tools, keep

from ..cpu.features import cpu_features
from .units import Unit, compile_units, tools_for

HERE = Path(__file__).parent / "emulation"
INCLUDE, SOURCES = HERE / "include", HERE / "src"
ARCHIVE, LOG = "libatb_emulation.a", "log_runtime.cpp"
FLAGS = ("-std=c++17", "-O2", "-march=native", "-fopenmp", "-fPIC", "-fvisibility=hidden",
         "-Wall", "-Wextra", "-Werror", "-Wno-psabi")
"""Of -O3 only compiling would be slower: the kernels are written with vectors."""


def build_emulation(folder: Path, environment: Mapping[str, str], flags: Sequence[str] = FLAGS,
                    progress: Progress = quiet) -> Path:
    """The archive in a folder below `folder`; it is compiled where it is not there yet.

    Raises ToolError, with the command, where a tool is missing or fails.
    """
    tools = tools_for(environment, "the emulation of ATB")

    def make(staged: Path) -> None:
        progress("compile", "the emulation, once: it is kept in the cache")
        begin = time.perf_counter()
        _archive(staged / ARCHIVE, tools, flags)
        progress("compile", f"the emulation took {time.perf_counter() - begin:.1f} s")

    key = hashlib.sha256(fingerprint(environment, flags).encode()).hexdigest()[:32]
    return keep(folder / "emulation" / key / ARCHIVE, make)


def fingerprint(environment: Mapping[str, str], flags: Sequence[str] = FLAGS) -> str:
    """What the archive depends on: the compiler, its flags, the CPU that they stand for, the
    sources."""
    digest = hashlib.sha256()
    for path in sorted(p for p in HERE.rglob("*") if p.suffix in (".h", ".hpp", ".cpp")):
        digest.update(f"{path.relative_to(HERE)}\0".encode() + path.read_bytes() + b"\0")
    cpu = " ".join(sorted(cpu_features())) if "-march=native" in flags else ""
    return "\n".join([Tools(environment).version(), *flags, cpu, digest.hexdigest()])


def _archive(archive: Path, tools: Tools, flags: Sequence[str]) -> None:
    if shutil.which(tools.archiver[0], path=tools.environment.get("PATH")) is None:
        raise tools.missing(tools.archiver[0], "No such file or directory")
    with tempfile.TemporaryDirectory(prefix="objects-", dir=archive.parent) as folder:
        objects = compile_units(tools, _units(Path(folder), flags), Path(folder))
        tools.run([*tools.archiver, "rcs", str(archive), *map(str, objects)])


def _units(folder: Path, flags: Sequence[str]) -> list[Unit]:
    """All operations as one source and all that checks as another, since reading the headers takes
    longer than compiling what most files have; and the log that a library may bring itself."""
    flags = (*flags, f"-I{INCLUDE}", f"-I{SOURCES}")
    operations = _together(folder / "operations.cpp", SOURCES.glob("ops/*.cpp"))
    rest = (path for path in SOURCES.glob("*.cpp") if path.name != LOG)
    checks = tuple("-O1" if flag == "-O2" else flag for flag in flags)
    return [Unit(operations, flags), Unit(_together(folder / "core.cpp", rest), checks),
            Unit(SOURCES / LOG, flags)]


def _together(unit: Path, sources: Iterable[Path]) -> Path:
    """A source that has others in it."""
    names = sorted(str(path.relative_to(SOURCES)) for path in sources)
    unit.write_text("".join(f'#include "{name}"\n' for name in names))
    return unit
