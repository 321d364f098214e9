"""The folder of a build: its manifest and library, refused where they are not what was built."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from graphdsl.backend import find_backend
from graphdsl.builder import CHECKSUM, LIBRARY, MANIFEST, is_whole
from graphdsl.errors import GraphError
from graphdsl.lazy import torch
from graphdsl.manifest import FORMAT, Json, manifest_text

if TYPE_CHECKING:
    from graphdsl.runtime._native import Library

KEYS = {"name": str, "backend": str, "features": list, "dims": list, "inputs": list,
        "state": list, "weights": list, "params": list, "outputs": list}
"""What a manifest has to hold before its library is opened and confirms the rest."""

_LOADED: dict[Path, list[str]] = {}
"""Checksums of the libraries that this process has loaded from a path, oldest first."""


def read_manifest(path: Path) -> Json:
    """The manifest of a build. Raises GraphError where there is none that this version reads."""
    file = path / MANIFEST
    if not file.is_file():
        raise GraphError(f"{path} holds no build: there is no {MANIFEST}",
                         hint="give the folder that `graphdsl build` printed")
    try:
        manifest: Json = json.loads(file.read_text())
    except ValueError as error:
        raise GraphError(f"{file} is damaged: {error}", hint="build it again") from None
    fault = next(_faults(manifest), "")
    if fault:
        raise GraphError(f"{file} {fault}", hint="build it again with this version")
    return manifest


def _faults(manifest: Json) -> Iterator[str]:
    if not isinstance(manifest, dict):
        yield f"is damaged: it holds a {type(manifest).__name__}"
        return
    if manifest.get("format") != FORMAT:
        yield f"has format {manifest.get('format')}, wanted {FORMAT}"
    for key, kind in KEYS.items():
        if not isinstance(manifest.get(key), kind):
            yield f"is damaged: it has no {key}"


def library_checksum(path: Path) -> str:
    """The checksum of a build's library. Raises GraphError where it is not the one built."""
    if not is_whole(path):
        raise GraphError(f"{path}: the library is missing or damaged", hint="build it again")
    return (path / CHECKSUM).read_text().strip()


def library_path(path: Path, checksum: str) -> str:
    """The library of a build as it is opened.

    The dynamic loader knows libraries by the text of their path and would give back an older one
    that was replaced, so every further library at a path is spelt differently.
    """
    folder = path.resolve()
    checksums = _LOADED.setdefault(folder, [])
    if checksum not in checksums:
        checksums.append(checksum)
    return f"{folder}/{'./' * checksums.index(checksum)}{LIBRARY}"


def open_library(path: Path, library: str, manifest: Json) -> Library:
    """Loads the library of the build at `path`.

    Raises GraphError where this machine lacks what it was built for, or where it cannot be loaded
    or does not belong to its manifest.
    """
    missing = find_backend(manifest["backend"]).missing(manifest["features"])
    if missing:
        raise GraphError(f"{path} was built for {', '.join(missing)}, which this machine lacks",
                         hint="build it again on this machine")
    # torch brings an OpenMP runtime; loaded first, it is the only one in the process.
    assert torch.get_num_threads()
    from graphdsl.runtime._native import Library

    try:
        opened = Library(library)
    except RuntimeError as error:
        raise GraphError(f"{path}: the library does not load: {error}",
                         hint="build it again on this machine") from None
    if opened.manifest() != manifest_text(manifest):
        raise GraphError(f"{path / MANIFEST} is damaged: it is not the one that the library was "
                         "built with", hint="build it again")
    return opened


__all__ = ["library_checksum", "library_path", "open_library", "read_manifest"]
