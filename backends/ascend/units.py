"""Sources that are compiled side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from graphdsl.compiler import Tools


@dataclass(frozen=True)
class Unit:
    """A source that is compiled by itself, and how."""

    source: Path
    flags: tuple[str, ...]


def tools_for(environment: Mapping[str, str], purpose: str) -> Tools:
    """The tools of an environment; messages say what they are used for."""
    return Tools(environment, f"{purpose} needs a C++ compiler and ar",
                 f"{purpose} does not compile",
                 "install g++ 12 or newer and binutils, or set CXX and AR")


def compile_units(tools: Tools, units: Sequence[Unit], folder: Path) -> list[Path]:
    """The objects of the sources, in `folder`. The longest source comes first."""
    made = [folder / f"{unit.source.stem}.o" for unit in units]
    commands = [[*tools.compiler, *unit.flags, "-c", str(unit.source), "-o", str(path)]
                for unit, path in zip(units, made, strict=True)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(tools.run, commands))
    return made


__all__ = ["Unit", "compile_units", "tools_for"]
