"""Appends to caches of every layout, step by step, against the reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from graphdsl.backends.cpu.backend import CPU
from graphdsl.builder import BuildOptions, build_graph
from graphdsl.ir import Graph, Layout, Value
from graphdsl.layer import KVCache, Layer, Param, trace
from graphdsl.lazy import torch_dtype
from graphdsl.models import llama
from graphdsl.models.llama import Llama
from graphdsl.ops import attention, concat, rms_norm, rope
from graphdsl.passes.samples import samples
from graphdsl.reference import TOLERANCE, error_of, run
from graphdsl.runtime.caches import dequantised, logical, physical, quantised
from graphdsl.runtime.operator import Operator

LAYOUTS = ("bsnd", "bnsd", "sbnd", "bnsd:int8", "bsnd:paged/4", "bnsd:paged/4", "sbnd:paged/4",
           "sbnd:paged/4:int8", "bsnd:shift", "bnsd:shift", "sbnd:shift:int8")
SLOTS, HEADS, DIM = 12, 2, 10
STEPS = (((0, 1, 2, 3, 4), (-1, -1, 0, 1, 2)), ((5,), (3,)), ((6, 7, 8), (-1, -1, -1)),
         ((9,), (4,)), ((10, -1, 11), (5, 6, 7)))
"""The positions of two sequences: chunks, single tokens, padding anywhere."""
VOCAB = 29
SMALL = llama.Config(vocab=VOCAB, hidden=16, layers=4, heads=4, kv_heads=HEADS, head_dim=DIM,
                     ffn=24)


@dataclass(frozen=True)
class Config:
    how: str = "kv_append"
    heads: int = HEADS
    dim: int = DIM
    rotary: int = 4
    every: int = DIM * len(LAYOUTS)
    readable: int = DIM * sum("shift" not in name for name in LAYOUTS)


class Caches(Layer):
    """One cache of every layout; the rules for rope want an attention that reads it."""

    signature = ("q[batch, tokens, heads, dim], k[batch, tokens, heads, dim],"
                 " v[batch, tokens, heads, dim], cos[batch, tokens, rotary]:f32,"
                 " sin[batch, tokens, rotary]:f32, positions[batch, tokens]:i32"
                 " -> y[batch, tokens, heads, every]")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.caches = [KVCache(config.heads, config.dim, layout=name) for name in LAYOUTS]
        self.weight = Param(config.dim)

    def forward(self, q: Value, k: Value, v: Value, cos: Value, sin: Value,
                positions: Value) -> Value:
        results = []
        for i, cache in enumerate(self.caches):
            new_q, new_k = q * (1 + i / 16), k * (1 + i / 16)
            if self.config.how == "norm_rope_append":
                new_q, new_k = (rms_norm(x, self.weight, eps=0.1) for x in (new_q, new_k))
            if self.config.how != "kv_append":
                new_q, new_k = rope(new_q, cos, sin), rope(new_k, cos, sin)
            new = cache.append(new_k, v, positions)
            if self.config.how != "kv_append":
                new_q = attention(new_q, new.k, new.v, positions)
            results.append(new_q)
        y: Value = concat(*results, axis=3)
        return y


class Copies(Layer):
    """The keys of one cache of every layout that can be read by number, side by side."""

    signature = ("k[batch, tokens, heads, dim], positions[batch, tokens]:i32"
                 " -> y[batch, slots, heads, readable]")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.caches = [KVCache(config.heads, config.dim, layout=name) for name in LAYOUTS
                       if "shift" not in name]

    def forward(self, k: Value, positions: Value) -> Value:
        y: Value = concat(*(c.append(k, k, positions).k for c in self.caches), axis=3)
        return y


@dataclass(frozen=True)
class Step:
    """What a step was given, what it gave, and the caches after it, cut to what they hold."""

    inputs: Mapping[str, Tensor]
    result: Tensor
    wanted: Tensor
    caches: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]


def inputs_of(graph: Graph, at: tuple[tuple[int, ...], ...], step: int) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(step)
    for leaf in graph.inputs:
        sizes = {"batch": 2, "tokens": len(at[0]), "outputs": 1}
        shape = [size if isinstance(size, int) else sizes[str(size)] for size in leaf.shape]
        made[leaf.name] = torch.randn(shape, generator=generator).to(torch_dtype(leaf.dtype))
    known = {"positions": torch.tensor(at), "rows": torch.full((2, 1), len(at[0]) - 1),
             "ids": torch.randint(0, VOCAB, (2, len(at[0])), generator=generator)}
    return {name: known[name].int() if name in known else made[name] for name in made}


def empty_state(operator: Operator) -> dict[str, Tensor]:
    """Caches without rows, and a table that gives their blocks out in any order."""
    table = torch.tensor([[3, 0, 6], [5, 1, 2]], dtype=torch.int32)
    made = {}
    for port in operator.manifest["state"]:
        rows = torch.zeros(2, SLOTS, HEADS, DIM, dtype=torch_dtype(port["dtype"]))
        made[port["name"]] = table if "layout" not in port else physical(
            rows, port, table=table, blocks=7, lengths=torch.zeros(2))
    return made


def caches_of(operator: Operator, state: Mapping[str, Tensor],
              lengths: Tensor) -> dict[str, Tensor]:
    """The caches [batch, slots, heads, dim] that lie in memory."""
    return {port["name"]: logical(state[port["name"]], port, table=state.get("block_table"),
                                  lengths=lengths)
            for port in operator.manifest["state"] if "layout" in port}


def steps_of(operator: Operator, graph: Graph) -> Iterator[Step]:
    """All steps one after the other on the same state, and the same in the reference."""
    dtype = torch_dtype(graph.state[0].dtype)
    empty = {v.name: torch.zeros(2, SLOTS, HEADS, DIM, dtype=dtype) for v in graph.state}
    params = samples(graph, 0).params
    lengths = torch.zeros(2, dtype=torch.long)
    state, known = empty_state(operator), dict(empty)
    operator.bind(params)
    for number, at in enumerate(STEPS):
        given = inputs_of(graph, at, number)
        lengths = torch.maximum(lengths, given["positions"].amax(1) + 1)
        outputs = run(graph, given, params, known)
        known = dict(zip((v.name for v in graph.state), outputs[1:], strict=True))
        result = operator(*given.values(), state=state)
        caches = caches_of(operator, state, lengths)
        held = torch.arange(SLOTS)[None, :, None, None] < lengths[:, None, None, None]
        yield Step(given, result, outputs[0], {n: t * held for n, t in caches.items()},
                   {n: t * held for n, t in known.items()})


def layout_of(operator: Operator, name: str) -> Layout:
    return Layout(**next(p["layout"] for p in operator.manifest["state"] if p["name"] == name))


def wrong(found: Tensor, wanted: Tensor, layout: Layout, dtype: str) -> Tensor:
    """How far the numbers of a cache are beyond what rounding, and int8 storage, may do."""
    largest = wanted.float().abs().amax(-1, keepdim=True)
    bound = TOLERANCE[dtype] * wanted.float().abs().max()
    if layout.storage == "int8":
        bound = bound + largest / 127 * 0.501
    return (found.float() - wanted.float()).abs() > bound


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.full), 2])
@pytest.mark.parametrize(("how", "dtype"), [
    ("kv_append", "bf16"), ("rope_append", "f32"), ("norm_rope_append", "bf16")])
def test_appends(how: str, dtype: str, threads: int, options: BuildOptions) -> None:
    graph = trace(Caches(Config(how)), dtype)
    operator = Operator(Path(build_graph(graph, replace(options, dtype=dtype)).path))
    source = (operator.path / "src" / "Caches.cpp").read_text()
    kernels = ("kv_append", "rope_append", "norm_rope_append")
    assert [name for name in kernels if f" {name}(team" in source] == [how]
    known = torch.get_num_threads()
    torch.set_num_threads(threads)
    for step in steps_of(operator, graph):
        real = step.inputs["positions"] >= 0
        for name, y, wanted in zip(LAYOUTS, step.result[real].split(DIM, -1),
                                   step.wanted[real].split(DIM, -1), strict=True):
            int8_is_read = "int8" in name and how != "kv_append"
            bound = 2 * TOLERANCE[dtype]  # the reference rounds after every kernel as well
            assert error_of(y, wanted) <= (0.04 if int8_is_read else bound), name
        for name, cache in step.caches.items():
            layout = layout_of(operator, name)
            assert not wrong(cache, step.expected[name], layout, dtype).any(), (name, str(layout))
    torch.set_num_threads(known)


def test_copies_and_exact_rows(options: BuildOptions) -> None:
    """Rows that are appended as they are come back as they were, or as int8 makes them, and the
    copies for readers that take no such cache are the caches."""
    graph = trace(Copies(Config()))
    operator = Operator(Path(build_graph(graph, options).path))
    assert (operator.path / "src" / "Copies.cpp").read_text().count(" relayout(team") >= 4
    for step in steps_of(operator, graph):
        names = [name for name in step.caches if name.endswith(".k")]
        held = (step.expected[names[0]] != 0).any(-1, keepdim=True)
        for name, piece in zip(names, step.result.split(DIM, -1), strict=True):
            wanted = step.expected[name]
            if layout_of(operator, name).storage == "int8":
                wanted = dequantised(quantised(wanted), torch.float32)
            assert torch.equal(step.caches[name], wanted), name
            assert torch.equal(piece * held, wanted), name


@pytest.mark.parametrize(("layout", "turns"), [
    ({"order": "sbnd", "policy": "paged", "block": "4"}, "2"), ({"policy": "shift"}, "2"),
    ({"policy": "paged", "block": "4"}, "9")], ids=["rolled", "rolled shift", "unrolled"])
def test_models(layout: Mapping[str, str], turns: str, quick_options: BuildOptions) -> None:
    """Layers that are rolled hand the table on to every turn; those that are not share a call."""
    graph = trace(Llama(SMALL))
    passes = {"kv_layout": layout, "roll": {"min_turns": turns}}
    operator = Operator(Path(build_graph(graph, replace(quick_options, passes=passes)).path))
    source = (operator.path / "src" / "Llama.cpp").read_text()
    assert source.count(" rope_append(team") == 1
    assert ("for (i64 turn" in source) == (turns == "2")
    for step in steps_of(operator, graph):
        real = step.inputs["positions"][:, -1] >= 0
        assert error_of(step.result[real], step.wanted[real]) <= TOLERANCE["f32"]
        for name, cache in step.caches.items():
            assert error_of(cache, step.expected[name]) <= TOLERANCE["f32"], name


def test_equal_layers_share_their_code(options: BuildOptions) -> None:
    """Calls that differ in their caches and tables alone are one function."""
    class Twice(Layer):
        signature = ("k[batch, tokens, heads, dim], positions[batch, tokens]:i32"
                     " -> y[batch, tokens, heads, dim]")

        def __init__(self, config: Config) -> None:
            self.config = config
            self.a = KVCache(config.heads, config.dim, layout="sbnd:paged/4:int8")
            self.b = KVCache(config.heads, config.dim, layout="sbnd:paged/4:int8")

        def forward(self, k: Value, positions: Value) -> Value:
            self.a.append(k, k, positions)
            self.b.append(k, k, positions)
            return k * 2.0

    emitted = build_graph(trace(Twice(Config())), replace(options, emit_only=True))
    source = (emitted.path / "src" / "Twice.cpp").read_text()
    assert source.count(" kv_append(team") == 1


def test_storage_that_the_cpu_does_not_have(options: BuildOptions) -> None:
    graph = trace(Copies(Config()))
    node = next(n for n in graph.nodes if n.name == "kv_append")
    nz = replace(node.inputs[0], type=replace(node.inputs[0].type, layout=Layout(storage="nz")))
    found = CPU().supports(replace(node, inputs=(nz, *node.inputs[1:])))
    assert found == "the cpu backend has no nz storage"
