"""What every command is given: the environment as cli.py read it, and a place to print."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from graphdsl.backend import find_backend
from graphdsl.builder import BuildOptions, check_options
from graphdsl.errors import GraphError
from graphdsl.passes.base import Target
from graphdsl.passes.quantise import check_quants, quantised
from graphdsl.passes.static import static_parts
from graphdsl.quant import asked
from graphdsl.source import Source, load_source


@dataclass
class Progress:
    """One line a stage. A terminal shows the stage under way and writes its summary over it."""

    out: TextIO
    is_terminal: bool

    def begin(self, stage: str) -> None:
        """`stage` is under way; only a terminal shows it."""
        if self.is_terminal:
            self.out.write(f"\r\033[K{stage} ...")
            self.out.flush()

    def done(self, stage: str, summary: str) -> None:
        """`stage` is over."""
        start = "\r\033[K" if self.is_terminal else ""
        self.out.write(f"{start}{stage:<8} {summary}\n")
        self.out.flush()
        following = {"trace": "passes", "passes": "render", "memory": "compile",
                     "atb": "compile", "cache": "compile"}.get(stage)
        if following:
            self.begin(following)

    def clear(self) -> None:
        """Takes away the stage under way, before an error is printed."""
        if self.is_terminal:
            self.out.write("\r\033[K")
            self.out.flush()


@dataclass(frozen=True)
class Launch:
    """What torchrun says of this process: its rank, how many there are, and where they meet."""

    rank: int
    ranks: int
    address: str
    port: int


@dataclass(frozen=True)
class Session:
    """`environment` is that of the process, `cache` the folder of builds and models, `launch` what
    torchrun says, where it has started this process."""

    cache: Path
    environment: Mapping[str, str] = field(repr=False)
    progress: Progress
    launch: Launch | None = None

    def options(self, args: argparse.Namespace, dtype: str) -> BuildOptions:
        """The build that the arguments ask for."""
        return BuildOptions(cache=self.cache, backend=args.backend, soc=args.soc,
                            dtype=dtype, passes=dict(args.passes), environment=self.environment)

    def source(self, args: argparse.Namespace) -> Source:
        """The file that the arguments name, traced; with --static one part of it. Raises GraphError
        for a backend, dtype or pass that is not there, before the file is run."""
        return self.sources(args)[0]

    def sources(self, args: argparse.Namespace) -> tuple[Source, ...]:
        """As `source`; with --static all parts that are asked for."""
        target = find_backend(args.backend, args.soc).target
        parts = static_parts(args.static, target)
        source = self._traced(args, target)
        return tuple(replace(source, graph=part.run(source.graph, target).graph)
                     for part in parts) or (source,)

    def _traced(self, args: argparse.Namespace, target: Target) -> Source:
        usual = target.layer_dtype
        check_options(self.options(args, args.dtype or usual))
        if args.quantize:
            check_quants(target)
        self.progress.begin("trace")
        source = load_source(args.file, dict(args.settings), args.dtype, default=usual)
        self.progress.clear()
        quant = asked(args.quantize, args.act, source.dtype)
        if quant is None:
            return source
        return replace(source, graph=quantised(source.graph, lambda name, kind: quant))


def check_folder(option: str, folder: Path) -> None:
    """Raises GraphError where `folder` cannot be made or written to."""
    if folder.exists() and not folder.is_dir():
        raise GraphError(f"{option} {folder}: this is a file",
                         hint="give a folder, new or existing")
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not parent.is_dir():
        raise GraphError(f"{option} {folder}: {parent} is a file", hint="give another folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise GraphError(f"{option} {folder}: {parent} cannot be written to",
                         hint="give another folder")


def say(line: str = "") -> None:
    """A line of the command's result."""
    sys.stdout.write(line + "\n")
