"""What a target cannot hold is refused first; sums of 16-bit values stay f32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from passcase import CPU, PLAIN, assert_same, graph_of, leaf, line_of, names

from graphdsl.backends.cpu.backend import BACKEND
from graphdsl.builder import BuildOptions, lower
from graphdsl.errors import GraphError
from graphdsl.ir import Dim, Graph, Value
from graphdsl.layer import Layer, Model, Param, trace
from graphdsl.models.llama import Config, Llama
from graphdsl.op import kernel, operation
from graphdsl.ops import (
    cast,
    cos,
    exp,
    linear,
    mean,
    mul,
    reduce_max,
    reduce_sum,
    reshape,
    rms_norm,
    tanh,
)
from graphdsl.passes.base import Fired, Missed
from graphdsl.passes.pipeline import Lowered, run_pass, run_pipeline
from graphdsl.passes.precision import KeepF32
from graphdsl.passes.rewrite import inline
from graphdsl.passes.samples import samples
from graphdsl.printer import text
from graphdsl.reference import error_of, run

TOKENS = Dim("tokens")


def kept(graph: Graph) -> Lowered:
    """The graph after this pass alone, and again after it."""
    lowered = run_pass(KeepF32(), Lowered(graph), PLAIN)
    assert_same(graph, lowered)
    again = run_pass(KeepF32(), lowered, PLAIN)
    assert text(again.graph) == text(lowered.graph)
    return lowered


def fired(lowered: Lowered) -> tuple[Fired, ...]:
    return lowered.report[0].fired


def row(name: str = "x") -> Value:
    return leaf(name, TOKENS, 8, dtype="bf16")


def softmax_of_narrow(x: Value) -> Value:
    e = exp(x - reduce_max(x))
    y: Value = e / reduce_sum(e)  # softmax
    return y


def test_golden(golden: Callable[[str, str], None]) -> None:
    """A softmax that was written in bf16."""
    before = graph_of(softmax_of_narrow(row()))
    after = kept(before)
    golden("passes/keep_f32.txt", "\n\n".join([text(before, locations=False),
                                               text(after.graph, locations=False)]))
    assert fired(after) == (Fired("KeepF32", line_of("softmax", __file__)),)


def test_what_the_sum_needs_alone_is_f32() -> None:
    x, y = row(), row("y")
    z = x * y
    lowered = kept(graph_of(reduce_sum(tanh(z)), z))
    made = {n.name: n.outputs[0].dtype for n in lowered.graph.nodes}
    assert made == {"mul": "bf16", "cast": "bf16", "tanh": "f32", "reduce_sum": "f32"}


@pytest.mark.parametrize("make", [
    lambda x: x * reduce_sum(x), lambda x: x - mean(x), lambda x: mean(x * x) + 1.0],
    ids=["product", "centred", "square"])
def test_a_rows_number_and_what_it_is_applied_to(make: Callable[[Value], Value]) -> None:
    """What `mean` rounds to bf16 is not rounded before it is used."""
    graph = graph_of(make(row()))
    while any(n.op.is_operation for n in graph.nodes):
        graph = inline(graph, lambda n: n.op.is_operation)
    lowered = kept(graph)
    assert len(fired(lowered)) == 1
    narrow = [n.name for n in lowered.graph.nodes if n.outputs[0].dtype == "bf16"]
    assert narrow == ["cast"]


def test_it_is_nearer_to_the_truth() -> None:
    """1024 terms whose squares bf16 rounds."""
    x = leaf("x", TOKENS, 1024, dtype="bf16")
    graph = graph_of(x * reduce_sum(x * x))
    lowered = run_pipeline(graph, CPU)
    given = samples(graph, 1)
    exact = run(graph, given.inputs, {}, exact=True)[0]
    before, after = (error_of(run(g, given.inputs, {})[0], exact) for g in (graph, lowered.graph))
    assert after < before


def test_f32_and_library_operations_are_left() -> None:
    for dtype in ("f32", "bf16"):
        lowered = run_pipeline(trace(Llama(Config(vocab=9, hidden=8, layers=2, heads=2, kv_heads=1,
                                                  head_dim=4, ffn=8)), dtype), CPU)
        assert not [f for r in lowered.report for f in r.fired if f.rule == "KeepF32"]
    x = leaf("x", TOKENS, 8)
    graph = graph_of(softmax_of_narrow(x))
    assert kept(graph).graph is graph


def test_an_explicit_cast_is_a_border() -> None:
    """The user has rounded, and meant it."""
    x = leaf("x", TOKENS, 8)
    rounded = cast(x * 3.0, dtype="bf16")
    lowered = kept(graph_of(reduce_sum(rounded)))
    assert names(lowered.graph) == ["constant", "mul", "cast", "cast", "reduce_sum", "cast"]


@dataclass(frozen=True)
class Small:
    hidden: int = 8
    layers: int = 3


class Sum(Layer):
    signature = "x[batch, tokens, hidden] -> y[batch, tokens, hidden]"

    def __init__(self, config: Small) -> None:
        self.config = config
        self.w = Param(config.hidden, config.hidden)

    def forward(self, x: Value) -> Any:
        return linear(x * reduce_sum(tanh(x)), self.w)


class Sums(Model):
    signature = Sum.signature

    def __init__(self, config: Small) -> None:
        self.config = config
        self.layers = [Sum(config) for _ in range(config.layers)]

    def forward(self, x: Value) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


def test_bodies_of_repeats() -> None:
    graph = trace(Sums(Small()), "bf16")
    lowered = run_pipeline(graph, CPU, verify=True)
    assert [f.rule for r in lowered.report for f in r.fired].count("KeepF32") == 1
    assert "repeat" in names(lowered.graph)


def angles(positions: Value, dtype: str, wide: bool) -> Value:
    at = cast(positions, dtype=dtype)  # narrow
    if wide:
        at = cast(at, dtype="f32")
    steps = leaf("steps", 4, dtype=at.dtype, kind="param")
    y: Value = cos(reshape(at, shape=(TOKENS, 1)) * steps)  # cos
    return y


@pytest.mark.parametrize(("dtype", "wide"), [("bf16", False), ("bf16", True), ("f32", False)])
def test_rounded_angles_are_reported(dtype: str, wide: bool) -> None:
    positions = leaf("positions", TOKENS, dtype="i32")
    lowered = run_pipeline(graph_of(angles(positions, dtype, wide)), CPU)
    found = [m for report in lowered.report for m in report.missed]
    reason = ("the angles come from bf16, where positions above 256 are not exact: "
              'cast them to "f32"')
    wanted = Missed("KeepF32", line_of("cos", __file__), "", reason, line_of("narrow", __file__))
    assert found == ([] if dtype == "f32" else [wanted])


def half(x: Value) -> Value:
    y: Value = cast(x, dtype="f16")  # f16
    return y


@operation
def through_half(x: Value) -> Value:
    """x rounded to f16 and back."""
    y: Value = cast(half(x), dtype="f32")
    return y


@kernel("x[*b] -> y[*b]", kind="pointwise")
def strange(x: torch.Tensor) -> torch.Tensor:
    """A kernel that no backend knows."""
    return x


class Bad(Layer):
    signature = "x[batch, tokens, hidden] -> y[batch, tokens, hidden]"

    def __init__(self, config: Small, what: str) -> None:
        self.config, self.what = config, what
        self.scale = Param(config.hidden, dtype="f16")

    def forward(self, x: Value) -> Any:
        x = rms_norm(x, cast(self.scale, dtype="f32"), eps=1e-5)
        if self.what == "cast":
            return cast(half(x), dtype="f32")
        if self.what == "operation":
            return through_half(x)  # operation
        if self.what == "kernel":
            return strange(x)  # strange
        return mul(x, 2.0)


class BadModel(Model):
    signature = Bad.signature

    def __init__(self, config: Small, what: str) -> None:
        self.config = config
        self.layers = [Bad(config, what) for _ in range(config.layers)]

    def forward(self, x: Value) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize(("what", "marker"), [("cast", "f16"), ("operation", "operation")])
def test_a_dtype_is_refused_before_anything_runs(what: str, marker: str) -> None:
    seen: list[str] = []
    with pytest.raises(GraphError, match=r"the cpu backend has no f16") as caught:
        run_pipeline(trace(BadModel(Small(), what)), CPU, observe=lambda name, _: seen.append(name))
    assert caught.value.loc == line_of(marker, __file__)
    assert caught.value.hint == "dtypes: bf16, f32"
    assert not seen


def test_a_kernel_without_code_is_refused(tmp_path: Any) -> None:
    options = BuildOptions(tmp_path)
    with pytest.raises(GraphError, match="the cpu backend has no code for strange") as caught:
        lower(trace(BadModel(Small(), "kernel")), options, BACKEND)
    assert caught.value.loc == line_of("strange", __file__)


def test_what_is_made_of_params_alone_may_be_anything(tmp_path: Any) -> None:
    """A param in f16 is cast when it is loaded."""
    graph = trace(BadModel(Small(), "plain"))
    lowered = lower(graph, BuildOptions(tmp_path), BACKEND)
    assert not any(v.dtype == "f16" for v in lowered.graph.leaves)
