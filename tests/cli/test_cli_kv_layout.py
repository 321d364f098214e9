"""Layouts of KV caches from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from clicase import Cli, Refused

LAYER = '''\
from dataclasses import dataclass

from graphdsl import KVCache, Layer
from graphdsl.ops import attention


@dataclass(frozen=True)
class Config:
    heads: int = 2
    dim: int = 8
    layout: str = ""


class Cached(Layer):
    signature = ("x[batch, tokens, heads, dim], positions[batch, tokens]:i32"
                 " -> y[batch, tokens, heads, dim]")

    def __init__(self, config=Config()):
        self.config = config
        self.kv = KVCache(config.heads, config.dim, layout=config.layout)

    def forward(self, x, positions):
        kv = self.kv.append(x, x, positions)
        return attention(x, kv.k, kv.v, positions) + kv.k[:, :1]
'''


@pytest.fixture(autouse=True)
def layer(here: Path) -> None:
    (here / "layer.py").write_text(LAYER)


@pytest.mark.parametrize("argv", [
    "--pass kv_layout:order=sbnd,policy=paged,block=8",
    "--pass kv_layout:order=bnsd,policy=paged --pass kv_layout:order=sbnd,block=8",
    "--set layout=sbnd:paged/8"])
def test_several_options(argv: str, cli: Cli) -> None:
    shown = cli("show", "layer.py", "--after", "kv_layout", *argv.split()).out
    assert "state %kv.k : f32[batch, slots, 2, 8]@sbnd:paged/8" in shown
    assert "state %block_table : i32[batch, pages]" in shown


def test_a_copy_is_told_with_its_bytes(cli: Cli) -> None:
    result = cli("explain", "layer.py", "--pass", "kv_layout:storage=int8")
    lines = result.out.splitlines()
    at = lines.index("layer.py:24  return attention(x, kv.k, kv.v, positions) + kv.k[:, :1]")
    assert lines[at + 1] == ("  fired   Relayout at layer.py:24 (64*batch*slots bytes from "
                             "bnsd:int8) [kv_layout]")
    assert "  fired   KVLayout at layer.py:20 (kv.k, bnsd:int8) [kv_layout]" in lines
    only = cli("explain", "layer.py", "--pass", "kv_layout:storage=int8", "--rule", "Relayout")
    assert only.last == "Relayout fired once, nearly 0 times"
    assert cli("explain", "layer.py", "--rule", "Relayout").last == (
        "Relayout fired 0 times, nearly 0 times")


@pytest.mark.parametrize(("argv", "wanted"), [
    ("--pass kv_layout:policy=shift", "layer.py:24: a cache is f32[batch, slots, 2, 8]@bnsd:shift"),
    ("--pass kv_layout:storage=nz", "layer.py:20: the cpu backend has no nz storage"),
    ("--set layout=dnsb", "layer.py:20: KVCache: no layout 'dnsb'"),
    ("--set layout=sbnd --pass kv_layout:order=bnsd",
     "layer.py:20: --pass kv_layout:order=bnsd: kv.k is pinned to sbnd")])
def test_refused(argv: str, wanted: str, refused: Refused) -> None:
    assert wanted in refused("build", "layer.py", "--emit-only", "--out", "out", *argv.split())


@pytest.mark.parametrize("options", ["order=sbnd", "policy=paged,block=4,storage=int8"])
def test_verified(options: str, cli: Cli) -> None:
    result = cli("build", "layer.py", "--verify", "--emit-only", "--out", "out", "--pass",
                 f"kv_layout:{options}")
    assert result.code == 0, result
