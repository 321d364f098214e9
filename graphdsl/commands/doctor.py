"""graphdsl doctor: whether everything needed is there."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

from graphdsl.backend import Check, find_backend
from graphdsl.commands.session import Session, say

TOOL_FAILED = 3
EXTRAS = {"hf": ("transformers", "tokenizers", "safetensors", "gguf", "accelerate")}


def run(args: argparse.Namespace, session: Session) -> int:
    """A line a finding; 3 when something is missing that a build on the CPU needs."""
    del args
    ok = True
    for check in _needed(session):
        ok = ok and check.ok
        say(f"{'ok     ' if check.ok else 'MISSING'}  {check.name}: {check.detail}")
    for check in _optional(session):
        say(f"{'ok     ' if check.ok else 'absent '}  {check.name}: {check.detail}")
    say("everything needed is there" if ok else "something that is needed is missing")
    return 0 if ok else TOOL_FAILED


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
    for name in sorted(e.name for e in entry_points(group="graphdsl.backends")):
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
