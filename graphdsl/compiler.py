"""The C++ compiler of an environment: how it is run, what is said where it fails, and how what it
makes is kept."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from graphdsl.errors import ToolError
from graphdsl.staging import publish, staging, sweep


@dataclass(frozen=True)
class Tools:
    """The tools that CXX, AR and PATH of `environment` name, and what is said where one is not
    there (`absent`, with `hint` how to get it) or fails (`failed`)."""

    environment: Mapping[str, str]
    absent: str = "no C++ compiler"
    failed: str = "the C++ compiler failed"
    hint: str = "install g++ 12 or newer, or set CXX to a C++17 compiler"

    @property
    def compiler(self) -> list[str]:
        return shlex.split(self.environment.get("CXX") or "g++")

    @property
    def archiver(self) -> list[str]:
        return shlex.split(self.environment.get("AR") or "ar")

    def run(self, command: Sequence[str]) -> str:
        """What the command prints. Raises ToolError, with the command and the first lines of its
        errors, where it fails or is not there."""
        try:
            done = subprocess.run(command, env=dict(self.environment), capture_output=True,
                                  text=True, check=False)
        except OSError as error:
            raise self.missing(command[0], error.strerror or "", command) from None
        if done.returncode != 0:
            raise ToolError(self.failed, shlex.join(command), done.stderr)
        return done.stdout

    def missing(self, tool: str, reason: str, command: Sequence[str] = ()) -> ToolError:
        """What is said of a tool that is not there."""
        return ToolError(f"{self.absent}: {reason}: {tool}", shlex.join(command), self.hint)

    def version(self) -> str:
        """The first line of the compiler's --version. Raises ToolError where there is none."""
        asked = replace(self, failed="the C++ compiler does not run")
        return asked.run([*self.compiler, "--version"]).partition("\n")[0]


def keep(path: Path, make: Callable[[Path], object]) -> Path:
    """The file, kept for good in a folder that is named by a hash of all that it depends on: where
    it is not there yet, `make` fills a folder that takes the place of its own. Two that make it at
    once both end with a right one, and one that fails leaves nothing."""
    home = path.parent
    if path.is_file():
        return path
    if home.parent.is_dir():
        sweep(home.parent)
    with staging(home.parent) as staged:
        make(staged)
        publish(staged, home)
    return path


__all__ = ["Tools", "keep"]
