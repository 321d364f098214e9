"""graphdsl doctor: whether everything needed is there."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from graphdsl.backend import Check, backend_names, find_backend
from graphdsl.commands.session import Session, say

TOOL_FAILED = 3
EXTRAS = {"hf": ("transformers", "tokenizers", "safetensors", "gguf", "accelerate")}


def run(args: argparse.Namespace, session: Session) -> int:
    """A line a finding, and one that says what is missing; 3 when a build on the CPU needs it."""
    del args
    missing = _told(_needed(session), "MISSING")
    absent = _told(_optional(session), "absent ")
    if missing:
        say(f"something that is needed is missing: {', '.join(missing)}")
        return TOOL_FAILED
    say(f"everything that the cpu backend needs is there; absent: {', '.join(absent)}" if absent
        else "everything needed is there")
    return 0


def _told(checks: Iterable[Check], word: str) -> list[str]:
    """Prints a line for each; the names of those that are not there."""
    names = []
    for check in checks:
        say(f"{'ok     ' if check.ok else word}  {check.name}: {check.detail}")
        names += [] if check.ok else [check.name]
    return names


def _needed(session: Session) -> Iterator[Check]:
    version = platform.python_version()
    yield Check("Python", sys.version_info >= (3, 11), f"{version}; wanted 3.11 or newer")
    for package in ("torch", "numpy", "jinja2", "networkx"):
        yield _package(package, "pip install graphdsl")
    yield _native()
    for check in find_backend("cpu").probe(session.environment).checks:
        yield Check(f"cpu: {check.name}", check.ok, check.detail)
    yield _cache(session.cache)


def _optional(session: Session) -> Iterator[Check]:
    for extra, packages in EXTRAS.items():
        for package in packages:
            yield _package(package, f"pip install 'graphdsl[{extra}]', to run real models")
    for name in backend_names():
        if name != "cpu":
            for check in find_backend(name).probe(session.environment).checks:
                yield Check(f"{name}: {check.name}", check.ok, check.detail)


def _package(name: str, hint: str) -> Check:
    try:
        return Check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, hint)


def _native() -> Check:
    """The package's own extension module, which loads what was built."""
    try:
        module = importlib.import_module("graphdsl.runtime._native")
    except ImportError as error:
        return Check("runtime", False, f"{error}; install graphdsl again")
    return Check("runtime", True, Path(module.__file__ or "").name)


def _cache(folder: Path) -> Check:
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    writable = parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)
    detail = str(folder) if writable else f"{parent} cannot be written to; set GRAPHDSL_CACHE"
    return Check("cache", writable, detail)
