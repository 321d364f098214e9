"""The library from its sources, from the runner, which is compiled once and kept, and from ATB or
its emulation."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from graphdsl.backend import Progress, quiet
from graphdsl.compiler import Tools, keep

from .cann import Cann
from .emulation_build import INCLUDE, build_emulation
from .units import Unit, compile_units, tools_for

FLAGS = ("-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror")
RUNNER = "runner.o"
GENERATED = "all-generated.cpp"
"""No name of a Layer, whose own file it would take the place of."""
EXCHANGER = """
#include "runner/abi.h"
extern "C" void atb_emulation_set_exchanger(gdsl_exchanger exchanger, void* context);
int gdsl_plan_exchanger(gdsl_plan*, gdsl_exchanger exchanger, void* context) {
  atb_emulation_set_exchanger(exchanger, context);
  return 0;
}
"""
"""The emulation reaches other ranks as the process says; with CANN ATB has a communicator."""


def compile_library(build: Path, manifest: str, library: Path, environment: Mapping[str, str],
                    cache: Path, cann: Cann | None, progress: Progress = quiet) -> None:
    """Compiles what is in build/src and links it with ATB, or with the emulation. The runner and
    the emulation are kept in `cache`; all three are compiled at once. Raises ToolError with the
    command and its output."""
    tools = tools_for(environment, "the library")
    with tempfile.TemporaryDirectory(prefix="objects-", dir=build) as name, \
            ThreadPoolExecutor() as pool:
        folder = Path(name)
        linked = pool.submit(_linked, cann, cache, environment, progress)
        runner = pool.submit(_runner, build / "src" / "runner", cache, tools, cann)
        (folder / GENERATED).write_text(_together(build / "src") +
                                        manifest_source(manifest, emulated=cann is None))
        unit = Unit(folder / GENERATED, _flags(build / "src", cann))
        generated = pool.submit(compile_units, tools, [unit], folder)
        last = linked.result()
        tools.run([*tools.compiler, "-shared", *map(str, generated.result()),
                   str(runner.result()), *last, "-o", str(library)])


def _together(sources: Path) -> str:
    """The generated files as one source: reading the headers takes longer than all of them."""
    return "".join(f'#include "{path.name}"\n' for path in sorted(sources.glob("*.cpp")))


def _linked(cann: Cann | None, cache: Path, environment: Mapping[str, str],
            progress: Progress) -> tuple[str, ...]:
    """What the library is linked with: ATB, or the emulation, which is made at need."""
    if cann:
        return cann.link_flags
    archive = build_emulation(cache, environment, progress=progress)
    return str(archive), "-fopenmp", "-Wl,--exclude-libs,ALL"


def _flags(sources: Path, cann: Cann | None) -> tuple[str, ...]:
    return (*FLAGS, *(cann.compile_flags if cann else (f"-I{INCLUDE}",)), f"-I{sources}")


def _runner(sources: Path, cache: Path, tools: Tools, cann: Cann | None) -> Path:
    """The object of what is the same in every library."""
    files = [*sources.iterdir(), *(() if cann else INCLUDE.rglob("*.h"))]
    digest = hashlib.sha256("\n".join([Tools(tools.environment).version(), *FLAGS,
                                       cann.fingerprint() if cann else ""]).encode())
    for path in sorted(files):
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    unit = Unit(sources / "runner.cpp", _flags(sources.parent, cann))
    return keep(cache / "runner" / digest.hexdigest()[:32] / RUNNER,
                lambda staged: compile_units(tools, [unit], staged))


def manifest_source(manifest: str, *, emulated: bool) -> str:
    """The text that says what the library was built for, and gives ATB's own log: the emulation
    has one, and is told which SoC it is; CANN writes files."""
    lines = "\n".join(f"    {json.dumps(line)}" for line in manifest.splitlines(keepends=True))
    text = f"extern \"C\" const char gdsl_manifest_text[] =\n{lines};\n"
    log = 'extern "C" const char* gdsl_runtime_log();\n' \
          'const char* gdsl_runtime_log() { return ""; }\n'
    name = json.loads(manifest).get("soc")
    soc = ('extern "C" void atb_emulation_set_soc(const char* name);\n'
           "[[maybe_unused]] static const bool chosen = "
           f"(atb_emulation_set_soc({json.dumps(name)}), true);\n") if name else ""
    if emulated and "group" in json.loads(manifest):
        soc += EXCHANGER
    # Without the declaration, a const array would be of this file alone.
    return f'extern "C" const char gdsl_manifest_text[];\n{text}{soc if emulated else log}'


__all__ = ["FLAGS", "compile_library", "manifest_source"]
