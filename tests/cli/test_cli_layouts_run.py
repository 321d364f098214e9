"""run and bench with KV caches of every layout."""

from __future__ import annotations

from pathlib import Path

import pytest
from clicase import Cli

LAYER = '''\
from dataclasses import dataclass

from graphdsl import KVCache, Layer
from graphdsl.ops import attention


@dataclass(frozen=True)
class Config:
    heads: int = 2
    dim: int = 8


class Cached(Layer):
    signature = ("x[batch, tokens, heads, dim], positions[batch, tokens]:i32"
                 " -> y[batch, tokens, heads, dim]")

    def __init__(self, config=Config()):
        self.config = config
        self.kv = KVCache(config.heads, config.dim)

    def forward(self, x, positions):
        kv = self.kv.append(x, x, positions)
        return attention(x, kv.k, kv.v, positions)


def peer(config):
    import torch

    class Peer(torch.nn.Module):
        def load(self, params):
            del params

        def reset(self, batch, slots, dtype):
            del batch, slots, dtype

        def set_past(self, k, v):
            self.k, self.v = k, v

        def forward(self, x, positions):
            k, v = (torch.cat([past, x], 1).transpose(1, 2) for past in (self.k, self.v))
            seen = torch.arange(k.shape[2]) <= positions[:1, :, None]
            y = torch.nn.functional.scaled_dot_product_attention(x.transpose(1, 2), k, v, seen)
            return y.transpose(1, 2)

    return Peer()
'''

READER = '''\
from graphdsl import Layer
from graphdsl.ops import attention


class Reader(Layer):
    signature = ("x[batch, tokens, 2, 8], k[batch, slots, 2, 8]@{layout}, "
                 "v[batch, slots, 2, 8]@{layout}, positions[batch, tokens]:i32 "
                 "-> y[batch, tokens, 2, 8]")

    def forward(self, x, k, v, positions):
        return attention(x, k, v, positions)
'''


@pytest.fixture(autouse=True)
def layer(here: Path) -> None:
    (here / "layer.py").write_text(LAYER)


@pytest.mark.parametrize(("options", "slots"), [
    ("order=bsnd,policy=shift", 10), ("order=sbnd,policy=paged,block=5", 10),
    ("order=bnsd,policy=paged,block=4,storage=int8", 12),
    *(pytest.param(*each, marks=pytest.mark.full)
      for each in (("order=bnsd,policy=paged", 16), ("order=sbnd,storage=int8", 10),
                   ("order=bsnd,policy=shift,storage=int8", 10)))])
def test_run(options: str, slots: int, cli: Cli) -> None:
    result = cli("run", "layer.py", "--tokens", "3", "--past", "7", "--batch", "2", "--pass",
                 f"kv_layout:{options}")
    assert result.code == 0, result
    tolerance = "0.02" if "int8" in options else "2e-05"
    assert f"(tolerance {tolerance}), 0 of " in result.last
    assert f"kv.k         [2, {slots}, 2, 8]: max relative error " in result.out


@pytest.mark.parametrize("options", ["policy=shift", "order=bnsd,policy=paged,block=3"])
def test_bench(options: str, cli: Cli) -> None:
    result = cli("bench", "layer.py", "--tokens", "3", "--past", "7", "--vs", "eager",
                 "--seconds", "0.01", "--pass", f"kv_layout:{options}")
    assert result.code == 0, result
    assert result.last.startswith("graphdsl is ")


@pytest.mark.parametrize("layout", ["sbnd", "bnsd:paged/4"])
def test_run_of_a_layer_whose_caches_are_inputs(layout: str, here: Path, cli: Cli) -> None:
    (here / "reader.py").write_text(READER.replace("{layout}", layout))
    result = cli("run", "reader.py", "--tokens", "3", "--past", "7")
    assert result.code == 0, result
    assert "(tolerance 2e-05), 0 of " in result.last
