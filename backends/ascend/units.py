"""C++ that is compiled: sources side by side, and what is kept of them."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from graphdsl.errors import ToolError
from graphdsl.staging import publish, staging, sweep


@dataclass(frozen=True)
class Unit:
    """A source that is compiled by itself, and how."""

    source: Path
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Tools:
    """The compiler of an environment, and what it is used for, as messages say it."""

    environment: Mapping[str, str]
    purpose: str

    @property
    def compiler(self) -> list[str]:
        return shlex.split(self.environment.get("CXX") or "g++")

    @property
    def archiver(self) -> list[str]:
        return shlex.split(self.environment.get("AR") or "ar")

    def compile(self, units: Sequence[Unit], folder: Path) -> list[Path]:
        """The objects of the sources, in `folder`. The longest source comes first."""
        made = [folder / f"{unit.source.stem}.o" for unit in units]
        commands = [[*self.compiler, *unit.flags, "-c", str(unit.source), "-o", str(path)]
                    for unit, path in zip(units, made, strict=True)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self.run, commands))
        return made

    def run(self, command: Sequence[str]) -> None:
        """Raises ToolError, with the command and what it printed, where it fails."""
        try:
            done = subprocess.run(command, env=dict(self.environment), capture_output=True,
                                  text=True, check=False)
        except OSError as error:
            raise self.missing(command[0], error.strerror or "", command) from None
        if done.returncode != 0:
            raise ToolError(f"{self.purpose} does not compile", shlex.join(command), done.stderr)

    def missing(self, tool: str, reason: str, command: Sequence[str] = ()) -> ToolError:
        """What is said of a tool that is not there."""
        return ToolError(f"{self.purpose} needs a C++ compiler and ar: {reason}: {tool}",
                         shlex.join(command),
                         "install g++ 12 or newer and binutils, or set CXX and AR")


def keep(path: Path, make: Callable[[Path], object]) -> Path:
    """The file, kept for good: where it is not there yet, `make` fills a folder that takes the
    place of its own. Two that make it at once both end with a right one, and one that fails leaves
    nothing."""
    home = path.parent
    if path.is_file():
        return path
    if home.parent.is_dir():
        sweep(home.parent)
    with staging(home.parent) as staged:
        make(staged)
        publish(staged, home)
    return path


__all__ = ["Tools", "Unit", "keep"]
