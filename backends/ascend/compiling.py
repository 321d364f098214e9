"""The library from its sources: one process a file, then the linker."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from graphdsl.errors import ToolError

from .cann import Cann
from .emulation_build import INCLUDE, build_emulation

FLAGS = ("-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror")
MANIFEST = "manifest.cpp"


def compile_library(build: Path, manifest: str, library: Path, environment: Mapping[str, str],
                    cache: Path, cann: Cann | None) -> None:
    """Compiles build/src/*.cpp and links them with ATB, or with the emulation, whose archive is
    kept in `cache`. Raises ToolError with the command and its output."""
    archive = None if cann else build_emulation(cache, environment)
    compiler = shlex.split(environment.get("CXX") or "g++")
    include = cann.compile_flags if cann else (f"-I{INCLUDE}",)
    with tempfile.TemporaryDirectory(prefix="objects-", dir=build) as folder:
        unit = Path(folder) / MANIFEST
        unit.write_text(manifest_source(manifest, emulated=cann is None))
        units = [*sorted((build / "src").glob("*.cpp")), unit]
        objects = [Path(folder) / f"{each.stem}.o" for each in units]
        commands = [[*compiler, *FLAGS, *include, f"-I{build / 'src'}", "-c", str(each), "-o",
                     str(made)] for each, made in zip(units, objects, strict=True)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda command: _run(command, environment), commands))
        linked = cann.link_flags if cann else (str(archive), "-fopenmp", "-Wl,--exclude-libs,ALL")
        _run([*compiler, "-shared", *map(str, objects), *linked, "-o", str(library)], environment)


def manifest_source(manifest: str, *, emulated: bool) -> str:
    """The object that says what the library was built for, and gives ATB's own log: the emulation
    has one, and is told which SoC it is; CANN writes files."""
    lines = "\n".join(f"    {json.dumps(line)}" for line in manifest.splitlines(keepends=True))
    text = f"extern \"C\" const char gdsl_manifest_text[] =\n{lines};\n"
    log = 'extern "C" const char* gdsl_runtime_log();\n' \
          'const char* gdsl_runtime_log() { return ""; }\n'
    name = json.loads(manifest).get("soc")
    soc = ('extern "C" void atb_emulation_set_soc(const char* name);\n'
           "[[maybe_unused]] static const bool chosen = "
           f"(atb_emulation_set_soc({json.dumps(name)}), true);\n") if name else ""
    # Without the declaration, a const array would be of this file alone.
    return f'extern "C" const char gdsl_manifest_text[];\n{text}{soc if emulated else log}'


def _run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(command, env=dict(environment), capture_output=True, text=True,
                              check=False)
    except OSError as error:
        raise ToolError(f"no C++ compiler: {error.strerror}: {command[0]}", shlex.join(command),
                        "install g++ 12 or newer, or set CXX to a C++17 compiler") from None
    if done.returncode != 0:
        raise ToolError("the C++ compiler failed", shlex.join(command), done.stderr)


__all__ = ["FLAGS", "compile_library", "manifest_source"]
