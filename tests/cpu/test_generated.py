"""Generated C++ against the reference: loops, views, matmuls with epilogues, state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from bundle import bundle, excess, outcomes

from graphdsl.builder import BuildOptions, build_graph, lower
from graphdsl.ir import Graph, Value
from graphdsl.layer import KVCache, Layer, Param, trace
from graphdsl.ops import (
    arange,
    argmax,
    attention,
    cast,
    concat,
    embedding,
    expand,
    expert_linear,
    floor,
    gelu,
    layer_norm,
    less,
    linear,
    logical_not,
    matmul,
    maximum,
    mean,
    pow,
    reduce_max,
    reduce_min,
    reduce_sum,
    repeat_interleave,
    reshape,
    rms_norm,
    silu,
    sin,
    softmax,
    split,
    tanh,
    topk,
    transpose,
    where,
)
from graphdsl.passes.samples import samples
from graphdsl.reference import TOLERANCE
from graphdsl.runtime.operator import Operator

SIZES = ({"batch": 1, "tokens": 1}, {"batch": 2, "tokens": 7}, {"batch": 3, "tokens": 33})


@dataclass(frozen=True)
class Config:
    hidden: int = 40
    wide: int = 72
    heads: int = 4
    dim: int = 10


class Small(Layer):
    """x[batch, tokens, hidden] and a few params, for one function of them."""

    def __init__(self, maths: Callable[[Any, Value], Any], outputs: str) -> None:
        self.config = Config()
        self.signature = f"x[batch, tokens, hidden] -> {outputs}"
        self.maths = maths
        self.scale = Param(40)
        self.shift = Param(40)
        self.w = Param(40, 40)
        self.wide = Param(72, 40)
        self.also_wide = Param(72, 40)
        self.back = Param(40, 72)
        self.bias = Param(72)
        self.one = Param(1, 40)

    def forward(self, x: Value) -> Any:
        return self.maths(self, x)


SAME = "y[batch, tokens, hidden]"


def heads(x: Value) -> Value:
    return reshape(x, shape=(*x.shape[:-1], 4, 10))


CASES: dict[str, tuple[Callable[[Any, Value], Any], str]] = {
    "norm and softmax": (lambda p, x: softmax(rms_norm(x, p.scale, eps=1e-5) * 2.0), SAME),
    "layer norm": (lambda p, x: layer_norm(x, p.scale, p.shift, eps=1e-5) + gelu(x), SAME),
    "three reductions in a row": (
        lambda p, x: x - reduce_max(x) + softmax(x * x) / (reduce_sum(x * x) + 1.0), SAME),
    "smallest of a row": (lambda p, x: x * reduce_min(tanh(x)), SAME),
    "a row's scalar is an output": (
        lambda p, x: (mean(x), x * 2.0), "m[batch, tokens, 1], " + SAME),
    "choice by comparison": (
        lambda p, x: where(less(x, p.shift), floor(x), maximum(sin(x), 0.5)), SAME),
    "bool output": (lambda p, x: logical_not(x > p.shift), SAME + ":bool"),
    "whole numbers": (
        lambda p, x: cast(x * 8.0, dtype="i32") * 3 - 7, SAME + ":i32"),
    "i32 to float and back": (
        lambda p, x: cast(maximum(cast(x * 8.0, dtype="i32"), 2), dtype=x.dtype) * x, SAME),
    "power of a positive": (lambda p, x: pow(x * x + 0.5, cast(p.shift, dtype=x.dtype)), SAME),
    "broadcast over heads": (
        lambda p, x: reshape(heads(x) * softmax(heads(x)) + reshape(p.scale, shape=(4, 10)),
                             shape=x.shape), SAME),
    "transposed operand": (
        lambda p, x: transpose(softmax(transpose(heads(x), order=(0, 1, 3, 2))),
                               order=(0, 1, 3, 2)), "y[batch, tokens, heads, dim]"),
    "reshape that needs a copy": (
        lambda p, x: reshape(transpose(heads(x), order=(0, 1, 3, 2)), shape=x.shape) * x, SAME),
    "halves swapped": (
        lambda p, x: concat(x[..., 20:] * 2.0, x[..., :20], axis=2), SAME),
    "concat of concats": (
        lambda p, x: concat(concat(x[..., :10] + 1.0, x[..., 10:20], axis=2) * 3.0,
                            silu(x[..., 20:]), axis=2), SAME),
    "uneven split": (
        lambda p, x: concat(*reversed(split(x * x, sizes=(8, 15, 17), axis=2)), axis=2), SAME),
    "one value twice and an input": (
        lambda p, x: ((y := x + 1.0), y, x), SAME + ", b[batch, tokens, hidden], "
        "c[batch, tokens, hidden]"),
    "expanded": (
        lambda p, x: expand(reshape(x, shape=(*x.shape[:2], 1, 40)), shape=(*x.shape[:2], 4, 40)),
        "y[batch, tokens, heads, hidden]"),
    "linear": (lambda p, x: linear(x, p.wide), "y[batch, tokens, wide]"),
    "linear with bias and gelu": (
        lambda p, x: gelu(linear(x, p.wide, p.bias)), "y[batch, tokens, wide]"),
    "linear to one column": (
        lambda p, x: tanh(linear(x, p.one)) * x[..., :1] + 0.5, "y[batch, tokens, 1]"),
    "gated": (
        lambda p, x: x + linear(silu(linear(x, p.wide)) * linear(x, p.also_wide), p.back), SAME),
    "linear feeding a norm and a sum": (
        lambda p, x: rms_norm((s := x + linear(x, p.w)), p.scale, eps=1e-5) + s, SAME),
    "linear of a strided x": (
        lambda p, x: linear(x, p.wide)[..., 16:56] * 2.0 + linear(linear(x, p.wide)[..., 16:56],
                                                                  p.w), SAME),
    "weight also used plainly": (
        lambda p, x: linear(x, p.w) + x * p.w[0] + embedding(cast(x * 0.0, dtype="i32")[..., 0],
                                                             p.w), SAME),
    "product of activations": (
        lambda p, x: matmul(heads(x), transpose(heads(x), order=(0, 1, 3, 2))),
        "y[batch, tokens, heads, heads]"),
    "counted and repeated": (
        lambda p, x: where(arange(size=x.shape[1])[None, :, None] <= arange(size=40),
                           x, repeat_interleave(x[..., :20], n=2, axis=2) + cast(
                               reshape(arange(size=40, dtype="f32"), shape=(1, 40)),
                               dtype=x.dtype)), SAME),
    "best of a row": (lambda p, x: argmax(x), "y[batch, tokens]:i32"),
    "attention without a cache": (
        lambda p, x: attention(heads(x), heads(x), heads(x * 2.0)),
        "y[batch, tokens, heads, dim]"),
    "attention of the first token": (
        lambda p, x: attention(heads(x)[:, :1], heads(x), heads(x)), "y[batch, 1, heads, dim]"),
    "attention to everything, capped": (
        lambda p, x: attention(heads(x), heads(x)[..., :2, :], heads(x)[..., 2:, :], causal=False,
                               softcap=2.0), "y[batch, tokens, heads, dim]"),
    "attention in a window": (
        lambda p, x: attention(heads(x), heads(x), heads(x), window=3),
        "y[batch, tokens, heads, dim]"),
}


NOT_BF16 = ("whole numbers", "choice by comparison", "best of a row")
"""One rounding of a bf16 operand changes the whole number or the choice."""
BF16 = [case for case in CASES if case not in NOT_BF16]
LIBRARIES = {"f32": (list(CASES), "f32"), "bf16": (BF16[::2], "bf16"),
             "more bf16": (BF16[1::2], "bf16")}
"""Cases that are one library, and their dtype."""

Errors = dict[str, list[tuple[Any, float]]]


def errors_of(graphs: Mapping[str, Graph], options: BuildOptions, dtype: str,
              sizes: Sequence[Mapping[str, int]], threads: Sequence[int]) -> Errors:
    """Graphs that are built as one library: for each, sizes and threads with the excess there."""
    whole = bundle(list(graphs.values()))
    operator = Operator(build_graph(whole, replace(options, dtype=dtype)).path)
    found: Errors = {case: [] for case in graphs}
    before = torch.get_num_threads()
    for count in threads:
        torch.set_num_threads(count)
        for dims in sizes:
            parts = outcomes(operator, list(graphs.values()), whole, samples(whole, 0, dims))
            for case, (graph, given, outputs) in zip(graphs, parts, strict=True):
                found[case].append(((dims, count), max(excess(graph, given, outputs))))
    torch.set_num_threads(before)
    return found


@pytest.fixture(scope="module")
def errors(options: BuildOptions) -> Callable[[str], Errors]:
    """The errors of all cases of a library, which is built when the first of them is asked for."""
    @cache
    def of(library: str) -> Errors:
        cases, dtype = LIBRARIES[library]
        graphs = {case: trace(Small(*CASES[case]), dtype) for case in cases}
        return errors_of(graphs, options, dtype, SIZES, (2,))

    return of


@pytest.mark.parametrize(("case", "library"), [
    pytest.param(case, library, id=f"{case}-{library}",
                 marks=pytest.mark.full if library == "more bf16" else ())
    for library, (cases, _) in LIBRARIES.items() for case in cases])
def test_small_layers_agree_with_the_reference(errors: Callable[[str], Errors], case: str,
                                               library: str) -> None:
    for at, error in errors(library)[case]:
        assert error <= TOLERANCE[LIBRARIES[library][1]], at


def test_any_number_of_threads(compare: Any) -> None:
    maths, outputs = CASES["gated"]
    compare(trace(Small(maths, outputs)), sizes=SIZES, threads=(1, 2, 3, 5))


PROLOGUES: dict[str, tuple[Callable[[Any, Value], Any], str]] = {
    "norm and linear": (
        lambda p, x: linear(rms_norm(x, p.scale, eps=1e-5), p.wide), "y[batch, tokens, wide]"),
    "norm and gate": (
        lambda p, x: x + linear(
            silu(linear((h := layer_norm(x, p.scale, p.shift, eps=1e-5)), p.wide))
            * linear(h, p.also_wide), p.back), SAME),
    "rows that the loop keeps": (
        lambda p, x: x + linear(softmax(tanh(x) * sin(x)), p.w), SAME),
    "rows of heads": (
        lambda p, x: linear(softmax(heads(x)), p.w[:10, :10] * 1.0),
        "y[batch, tokens, heads, dim]"),
    "strided rows": (
        lambda p, x: linear(softmax(linear(x, p.wide)[..., 16:56]), p.wide),
        "y[batch, tokens, wide]"),
}


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_prologues(options: BuildOptions, dtype: str) -> None:
    """A single row is made by every thread, several are shared."""
    graphs = {case: trace(Small(maths, outputs), dtype)
              for case, (maths, outputs) in PROLOGUES.items()}
    for case, graph in graphs.items():
        nodes = lower(graph, replace(options, dtype=dtype)).graph.nodes
        assert any(node.name == "matmul_prologue" for node in nodes), case
    sizes = [{"batch": 1, "tokens": rows} for rows in (1, 2, 3, 40)]
    for case, errors in errors_of(graphs, options, dtype, sizes, (1, 2, 3)).items():
        for at, error in errors:
            assert error <= TOLERANCE[dtype], (case, at)


class Experts(Layer):
    """Mixture of experts: the two best of five, each a linear, weighted."""

    signature = "x[batch, tokens, hidden] -> y[batch, tokens, hidden]"

    def __init__(self) -> None:
        self.config = Config()
        self.router = Param(5, 40)
        self.experts = Param(5, 40, 40)

    def forward(self, x: Value) -> Value:
        weights, chosen = topk(softmax(linear(x, self.router)), k=2)
        first = expert_linear(x, self.experts, chosen[..., 0]) * weights[..., :1]
        second: Value = expert_linear(x, self.experts, chosen[..., 1]) * weights[..., 1:]
        return first + second


def test_mixture_of_experts(compare: Any) -> None:
    compare(trace(Experts()), sizes=SIZES)


class SharedExperts(Layer):
    """Three of five experts for every token, whose row they share; then weights that are no params
    and ids that say nothing of what is in a row."""

    signature = ("x[batch, tokens, hidden], w[3, hidden, hidden], ids[batch, tokens]:i32"
                 " -> y[batch, tokens, hidden]")

    def __init__(self) -> None:
        self.config = Config()
        self.router = Param(5, 40)
        self.experts = Param(5, 40, 40)

    def forward(self, x: Value, w: Value, ids: Value) -> Value:
        _, chosen = topk(softmax(linear(x, self.router)), k=3)
        rows = expand(x[:, :, None], shape=(*chosen.shape, 40))
        made = expert_linear(rows, self.experts, chosen)
        y: Value = made[:, :, 0] + made[:, :, 1] * made[:, :, 2]
        return y + expert_linear(x, transpose(w, order=(0, 2, 1)), ids)


def test_a_row_is_shared_and_weights_may_be_inputs(compare: Any) -> None:
    compare(trace(SharedExperts()), sizes=SIZES)


class Cached(Layer):
    """Appends to a cache of two heads and reads it with four."""

    signature = ("x[batch, tokens, hidden], positions[batch, tokens]:i32"
                 " -> y[batch, tokens, heads, dim]")

    def __init__(self, window: int = 0) -> None:
        self.config = Config()
        self.window = window
        self.kv = KVCache(2, 10)

    def forward(self, x: Value, positions: Value) -> Value:
        q = heads(x)
        kv = self.kv.append(q[:, :, :2], q[:, :, 2:], positions)
        y: Value = attention(q, kv.k, kv.v, positions, window=self.window)
        return y


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_cache(compare: Any, dtype: str, window: int) -> None:
    sizes = ({"batch": 1, "tokens": 1, "slots": 1}, {"batch": 3, "tokens": 9, "slots": 40})
    operator = compare(trace(Cached(window), dtype), dtype, sizes)
    assert operator.manifest["state"][0]["layout"]["order"] == "bnsd"


def test_an_index_that_the_layer_computes_cannot_leave_the_cache(compare: Any) -> None:
    class Displaced(Cached):
        def forward(self, x: Value, positions: Value) -> Value:
            return super().forward(x, positions + 1000)

    operator = compare(trace(Displaced()), sizes=())
    state = operator.new_state(1, 4)
    operator(torch.randn(1, 2, 40), torch.tensor([[0, 1]], dtype=torch.int32), state=state)
    assert not any(cache.any() for cache in state.values())


def test_any_name_of_a_size(compare: Any) -> None:
    class Named(Layer):
        signature = "x[n, w, hidden], v[int, t] -> y[n, w, hidden], z[int, t]"
        config = Config()

        def __init__(self) -> None:
            self.w = Param(40, 40)

        def forward(self, x: Value, v: Value) -> tuple[Value, Value]:
            return softmax(linear(rms_norm(x, self.w[0], eps=1e-5), self.w)), silu(v)

    compare(trace(Named()), sizes=({"n": 2, "w": 3, "int": 4, "t": 5},))


def test_no_dims_at_all(compare: Any) -> None:
    class Fixed(Layer):
        signature = "x[8, 40] -> y[8, 40]"
        config = Config()

        def forward(self, x: Value) -> Value:
            return softmax(x) * 3.0

    graph: Graph = trace(Fixed())
    assert not compare(graph).manifest["dims"]


def test_a_long_row_of_a_known_size(compare: Any) -> None:
    """Two parts of a row, and a compiler that knows how long both are."""
    class Long(Layer):
        signature = "x[batch, tokens, 6848] -> y[batch, tokens, 3424]"
        config = Config()

        def forward(self, x: Value) -> Value:
            gate, up = split(x, sizes=(3424, 3424))
            y: Value = silu(gate) * up
            return y

    compare(trace(Long(), "bf16"), "bf16")
