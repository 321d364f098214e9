"""Folders that hold no build, a damaged one, or one for another machine."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quick import quick_environment
from runtime_layers import HIDDEN

from graphdsl.builder import CHECKSUM, LIBRARY, MANIFEST, BuildOptions, build_graph
from graphdsl.errors import GraphError
from graphdsl.ir import Value
from graphdsl.layer import Layer, trace
from graphdsl.runtime.operator import load


@pytest.fixture
def folder(pair_path: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(pair_path, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_no_build(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"holds no build: there is no manifest\.json"):
        load(tmp_path)
    with pytest.raises(GraphError, match="holds no build"):
        load(tmp_path / "missing")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b'{"format": 1'])
def test_a_manifest_that_is_not_json(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(GraphError, match=r"manifest.json is damaged.*\n.*build it again"):
        load(folder)


@pytest.mark.parametrize(("content", "message"), [
    ("[]", "is damaged: it holds a list"), ("{}", "has format None, wanted 1"),
    ('{"format": 9}', "has format 9, wanted 1"),
    ('{"format": 1, "name": 3}', "is damaged: it has no name"),
])
def test_a_manifest_that_is_another(folder: Path, content: str, message: str) -> None:
    (folder / MANIFEST).write_text(content)
    with pytest.raises(GraphError, match=message):
        load(folder)


def test_a_manifest_that_was_edited(folder: Path) -> None:
    edit(folder, lambda m: m["weights"][0].update(shape=[1 << 30]))
    with pytest.raises(GraphError, match="it is not the one that the library was built with"):
        load(folder)


def test_features_that_this_cpu_lacks(folder: Path) -> None:
    edit(folder, lambda m: m["features"].append("avx9000"))
    with pytest.raises(GraphError, match="was built for avx9000, which this machine lacks"):
        load(folder)


def test_an_unknown_backend(folder: Path) -> None:
    edit(folder, lambda m: m.update(backend="abacus"))
    with pytest.raises(GraphError, match="no backend abacus"):
        load(folder)


@pytest.mark.parametrize("damage", [
    lambda p: (p / LIBRARY).unlink(), lambda p: (p / CHECKSUM).unlink(),
    lambda p: (p / LIBRARY).write_bytes((p / LIBRARY).read_bytes()[:5000]),
    lambda p: (p / CHECKSUM).write_text("0"),
])
def test_a_damaged_library(folder: Path, damage: Callable[[Path], Any]) -> None:
    damage(folder)
    with pytest.raises(GraphError, match="the library is missing or damaged"):
        load(folder)


def test_a_library_that_does_not_load(folder: Path) -> None:
    (folder / LIBRARY).write_bytes(b"no ELF")
    (folder / CHECKSUM).write_text(hashlib.sha256(b"no ELF").hexdigest())
    with pytest.raises(GraphError, match="the library does not load"):
        load(folder)


class Factor(Layer):
    """Two of these differ in code alone, not in their manifests."""

    signature = "x[batch, tokens, 32] -> y[batch, tokens, 32]"

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def forward(self, x: Value) -> Value:
        return x * self.factor


def test_a_folder_that_was_built_into_again(cache: Path, tmp_path: Path) -> None:
    x, operators = torch.ones(1, 1, HIDDEN), []
    for factor in (2.0, 3.0, 2.0):
        options = BuildOptions(cache, out=tmp_path / "out", environment=quick_environment())
        operators.append(load(build_graph(trace(Factor(factor)), options).path))
    assert [op(x).mean().item() for op in operators] == [2.0, 3.0, 2.0]
