"""How the C++ tests of the emulation are compiled and run."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from graphdsl.backends.ascend.emulation_build import INCLUDE

FOLDER = Path(__file__).parent / "emulation"
COMMON = ("-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{INCLUDE}")


def sources(program: str) -> list[Path]:
    """The files of a test program: those whose names begin with its name."""
    return sorted(FOLDER.glob(f"{program}*.cpp"))


def names(program: str) -> list[str]:
    """The tests that a program has."""
    return [name for path in sources(program)
            for name in re.findall(r"^TEST\((\w+)\)", path.read_text(), re.M)]


def compile_program(program: str, archive: Path, out: Path, flags: Sequence[str] = ()) -> Path:
    """The program, linked with the archive. Its files are one source: reading the headers takes
    longer than compiling most of them."""
    together, binary = out / f"{program}.cpp", out / program
    together.write_text("".join(f'#include "{path}"\n' for path in sources(program)))
    _run(["g++", *COMMON, *flags, "-fopenmp", str(together), str(archive), "-o", str(binary)])
    return binary


def run_program(binary: Path, *tests: str) -> None:
    """Runs the named tests, or all."""
    done = subprocess.run([str(binary), *tests], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[:4000]


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[:4000]}"
