"""The command line: reads the environment, runs one command, turns errors into exit codes."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path

from graphdsl import __version__
from graphdsl.commands.arguments import parser
from graphdsl.commands.session import Launch, Progress, Session
from graphdsl.errors import GraphError, ToolError
from graphdsl.passes.base import CheckFailed

CHECK_FAILED, WRONG_INPUT, TOOL_FAILED, INTERRUPTED = 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `graphdsl ARGV` and returns its exit code: 0 done, 1 a check failed, 2 the input is
    wrong, 3 a tool is missing or failed."""
    args = parser(__version__).parse_args(argv)
    launch = launch_of(os.environ)
    if getattr(args, "tensor_parallel", 1) == 1 or launch is None or launch.rank == 0:
        return _run(args, launch)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # rank 0 speaks for all
        return _run(args, launch)


def _run(args: argparse.Namespace, launch: Launch | None) -> int:
    progress = Progress(sys.stdout, sys.stdout.isatty())
    try:
        session = Session(cache_folder(os.environ), dict(os.environ), progress, launch)
        command = importlib.import_module(f"graphdsl.commands.{args.command}")
        code: int = command.run(args, session)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output has left; nothing is lost, and there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        progress.clear()
        return INTERRUPTED
    except (GraphError, ToolError, CheckFailed, OSError) as error:
        if args.debug:
            raise
        progress.clear()
        sys.stdout.flush()
        sys.stderr.write(f"error: {_message(error)}\n")
        return _code(error)


def _code(error: Exception) -> int:
    if isinstance(error, ToolError):
        return TOOL_FAILED
    return CHECK_FAILED if isinstance(error, CheckFailed) else WRONG_INPUT


def _message(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    where = f"{error.filename}: " if error.filename else ""
    hint = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the folder"
    return (f"{where}{error.strerror or error}\n  hint: {hint}, or give another one with --out or "
            "GRAPHDSL_CACHE")


def launch_of(environment: Mapping[str, str]) -> Launch | None:
    """What torchrun says of this process; None where it has not started it."""
    try:
        return Launch(int(environment["RANK"]), int(environment["WORLD_SIZE"]),
                      environment["MASTER_ADDR"], int(environment["MASTER_PORT"]))
    except (KeyError, ValueError):
        return None


def cache_folder(environment: Mapping[str, str]) -> Path:
    """GRAPHDSL_CACHE, or graphdsl in the user's cache folder. Raises GraphError for a file."""
    own, shared = environment.get("GRAPHDSL_CACHE"), environment.get("XDG_CACHE_HOME")
    if own:
        folder = Path(own).expanduser().absolute()
    else:
        folder = (Path(shared) if shared else Path.home() / ".cache") / "graphdsl"
    if folder.exists() and not folder.is_dir():
        raise GraphError(f"GRAPHDSL_CACHE {folder}: this is a file",
                         hint="give a folder, new or existing")
    return folder


if __name__ == "__main__":
    sys.exit(main())
