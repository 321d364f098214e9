"""Attention reads caches of every layout where they lie: masks, windows, epilogues, long inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from bundle import excess, outcome
from torch import Tensor

from graphdsl.builder import BuildOptions, build_graph
from graphdsl.ir import Graph, Value
from graphdsl.layer import KVCache, Layer, trace
from graphdsl.ops import attention, transpose
from graphdsl.passes.samples import Samples, samples
from graphdsl.reference import TOLERANCE
from graphdsl.runtime.caches import dequantised, quantised
from graphdsl.runtime.operator import Operator

WHOLE = ("bsnd", "bnsd", "sbnd", "bsnd:int8")
"""Those of which all slots can be read, whatever the length."""
LAYOUTS = (*WHOLE, "bnsd:paged/5", "sbnd:paged/5:int8", "bsnd:shift", "bnsd:shift:int8",
           "sbnd:shift")

FEW = {"tokens": 2, "slots": 80, "keys": 71}
SIZES: tuple[tuple[dict[str, int], int], ...] = (
    (FEW | {"tokens": 1, "batch": 1}, 60), (FEW, 70), (FEW | {"keys": 93}, 77),
    (FEW | {"keys": 1}, 70), (FEW | {"tokens": 40, "keys": 66}, 30),
    (FEW | {"tokens": 75, "keys": 130}, 0))
"""Dims of a step, and the tokens before it: masks are narrower than the slots and wider."""


@dataclass(frozen=True)
class Config:
    layouts: tuple[str, ...] = LAYOUTS
    heads: int = 4
    kv_heads: int = 2
    dim: int = 10


class Attends(Layer):
    """Appends to one cache of every layout, and attends to each with masks of their own width.
    What follows the first is worked on in the attention's own rows."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.caches = [KVCache(config.kv_heads, config.dim, layout=name)
                       for name in config.layouts]
        results = ", ".join(f"{kind}{i}[batch, tokens, heads, dim]"
                            for i in range(len(config.layouts)) for kind in ("seen", "added"))
        self.signature = (
            "q[batch, tokens, heads, dim], k[batch, tokens, kv_heads, dim],"
            " v[batch, tokens, kv_heads, dim], positions[batch, tokens]:i32,"
            f" seen[batch, 1, tokens, keys]:bool, bias[tokens, keys]:f32 -> {results}")

    def forward(self, q: Value, k: Value, v: Value, positions: Value, seen: Value,
                bias: Value) -> tuple[Value, ...]:
        results = []
        for name, cache in zip(self.config.layouts, self.caches, strict=True):
            new = cache.append(k, v, positions)
            gated = attention(q, new.k, new.v, positions, mask=seen, window=50) * q
            added = attention(q, new.k, new.v, positions, mask=bias, causal=name not in WHOLE,
                              softcap=20.0)
            results += [gated, added]
        return tuple(results)


class Plain(Layer):
    """Attention to keys and values that are no cache, in strides of their own."""

    signature = ("q[batch, tokens, heads, dim], k[batch, kv_heads, keys, dim],"
                 " v[keys, batch, kv_heads, dim] -> y[batch, tokens, heads, dim]")

    def __init__(self, config: Config) -> None:
        self.config = config

    def forward(self, q: Value, k: Value, v: Value) -> Value:
        y: Value = attention(q, transpose(k, order=(0, 2, 1, 3)), transpose(v, order=(1, 0, 2, 3)),
                             causal=False)
        return y


def without_rounding(rows: Tensor) -> Tensor:
    """Rows that int8 storage keeps as they are."""
    return dequantised(quantised(rows), rows.dtype)


def given_to(graph: Graph, dims: Mapping[str, int], past: int) -> Samples:
    """Samples whose masks hide all keys from some rows."""
    given = samples(graph, 3, dims, past=past)
    inputs = dict(given.inputs)
    for name in "kv":
        inputs[name] = without_rounding(inputs[name])
    inputs["seen"][0, :, -1] = False
    inputs["bias"][0] = -torch.inf
    state = {name: without_rounding(cache) for name, cache in given.state.items()}
    return replace(given, inputs=inputs, state=state)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_every_layout(dtype: str, options: BuildOptions) -> None:
    graph = trace(Attends(Config()), dtype)
    operator = Operator(Path(build_graph(graph, replace(options, dtype=dtype)).path))
    source = (operator.path / "src" / "Attends.cpp").read_text()
    assert "relayout(team" not in source
    assert source.count("t.finish_with = &finish;") == len(LAYOUTS)
    known = torch.get_num_threads()
    for dims, past in SIZES:
        given = given_to(graph, dims, past)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found = outcome(operator, graph, given)
            assert all(y.isfinite().all() for y in found[0])
            errors = excess(graph, given, found)[:2 * len(LAYOUTS)]
            assert max(errors) <= TOLERANCE[dtype], (dims, past, threads, errors)
    torch.set_num_threads(known)


def test_rows_that_see_nothing_are_zero(options: BuildOptions) -> None:
    graph = trace(Attends(Config()))
    operator = Operator(Path(build_graph(graph, options).path))
    given = given_to(graph, FEW, 70)
    found = outcome(operator, graph, given)[0][:2 * len(LAYOUTS)]
    assert given.inputs["positions"].tolist() == [[70, 71], [-1, 70]]
    for seen, added in zip(found[::2], found[1::2], strict=True):
        assert not seen[0, 1].any()
        assert not added[:, 0].any()
        assert not seen[1, 0].any()
        assert seen[0, 0].any()


@pytest.mark.parametrize("tokens", [1, 30])
def test_strides_of_what_is_no_cache(tokens: int, options: BuildOptions) -> None:
    graph = trace(Plain(Config()))
    operator = Operator(Path(build_graph(graph, options).path))
    assert "copy_strided" not in (operator.path / "src" / "Plain.cpp").read_text()
    given = samples(graph, 0, {"tokens": tokens, "keys": 37})
    errors = excess(graph, given, outcome(operator, graph, given))
    assert max(errors) <= TOLERANCE["f32"]
