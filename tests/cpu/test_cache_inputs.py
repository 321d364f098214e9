"""A cache that is handed in as an input, in the layout that the signature names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from graphdsl.builder import BuildOptions, build_graph
from graphdsl.errors import GraphError
from graphdsl.ir import Value
from graphdsl.layer import Layer, trace
from graphdsl.ops.attention import attention
from graphdsl.passes.samples import Samples, samples
from graphdsl.reference import error_of, run
from graphdsl.runtime.caches import dequantised, physical, quantised
from graphdsl.runtime.operator import Operator


@dataclass(frozen=True)
class Heads:
    heads: int = 4
    kv_heads: int = 2
    dim: int = 8


class Reader(Layer):
    """Attends to a cache that somebody else writes."""

    def __init__(self, layout: str) -> None:
        self.config = Heads()
        cache = f"[batch, slots, kv_heads, dim]@{layout}"
        self.signature = ("x[batch, tokens, heads, dim], positions[batch, tokens]:i32,"
                          f" k{cache}, v{cache} -> y[batch, tokens, heads, dim]")

    def forward(self, x: Value, positions: Value, k: Value, v: Value) -> Value:
        y: Value = attention(x, k, v, positions)
        return y


def reader(layout: str, options: BuildOptions) -> tuple[Operator, Samples]:
    graph = trace(Reader(layout))
    operator = Operator(Path(build_graph(graph, options).path))
    return operator, samples(graph, 0, {"slots": 8, "tokens": 3}, past=4)


@pytest.mark.parametrize("layout", ["bsnd", "bnsd", "sbnd", "bnsd:paged/4", "sbnd:int8",
                                    "bsnd:paged/2:int8"])
def test_a_cache_as_an_input(layout: str, quick_options: BuildOptions) -> None:
    operator, given = reader(layout, quick_options)
    inputs: dict[str, Any] = dict(given.inputs)
    ports = operator.manifest["inputs"]
    block = ports[2]["layout"]["block"]
    pages = 8 // block if block else 0
    table = torch.randperm(2 * pages).int().view(2, pages)
    caches = {name: inputs[name] for name in "kv"}
    for port in ports[2:]:
        inputs[port["name"]] = physical(caches[port["name"]], port, table=table,
                                        blocks=table.numel() + 1)
    state = {"block_table": table} if block else None
    found = operator(*(inputs[port["name"]] for port in ports), state=state)
    if layout.endswith("int8"):
        caches = {name: dequantised(quantised(c), torch.float32) for name, c in caches.items()}
    wanted = run(trace(Reader(layout)), {**given.inputs, **caches}, {})[0]
    assert error_of(found, wanted) < 2e-5


@pytest.mark.parametrize(("layout", "message"), [
    ("sbnd", r"k is \[2, 8, 2, 8\], wanted \[slots, batch, 2, 8\]: batch is 8"),
    ("bsnd:int8", "k is torch.float32, wanted torch.int8")])
def test_a_cache_of_another_layout(layout: str, message: str,
                                  quick_options: BuildOptions) -> None:
    operator, given = reader(layout, quick_options)
    with pytest.raises(GraphError, match=message):
        operator(*given.inputs.values())
