"""Where the formats of quantised weights go, and what keeps its dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from passcase import CPU, PLAIN, line_of

from graphdsl.errors import GraphError
from graphdsl.ir import Graph, TensorType, Value
from graphdsl.layer import Layer, Model, Param, trace
from graphdsl.ops import embedding, linear, reshape, rms_norm, transpose
from graphdsl.passes.base import Missed
from graphdsl.passes.pipeline import Lowered, run_pipeline
from graphdsl.passes.quantise import quantised
from graphdsl.printer import text
from graphdsl.quant import Quant

TARGET = replace(CPU, quants=True)
WIDTH = 32


class Mixed(Layer):
    """Two weights that are merged, one that is computed with, one that is added to something, and
    one of few rows."""

    signature = (f"x[batch, {WIDTH}], y[batch, {WIDTH}], z[batch, {WIDTH}], t[64, {WIDTH}] -> "
                 f"a[batch, 64], b[batch, 48], c[batch, 64], d[64, {WIDTH}], e[batch, 8]")

    def __init__(self) -> None:
        self.a = Param(64, WIDTH)
        self.b = Param(48, WIDTH)
        self.scaled = Param(64, WIDTH)
        self.added = Param(64, WIDTH)
        self.few = Param(8, WIDTH)

    def forward(self, x: Value, y: Value, z: Value, t: Value) -> tuple[Value, ...]:
        return (linear(x, self.a), linear(x, self.b),
                linear(y, self.scaled * 2.0),  # scaled
                t + self.added,  # added
                linear(z, self.few))


class Plain(Layer):
    """Two linears of one input and a weight that is [in, out]."""

    signature = f"x[batch, tokens, {WIDTH}] -> y[batch, tokens, {WIDTH}]"

    def __init__(self) -> None:
        self.norm = Param(WIDTH)
        self.a = Param(48, WIDTH)
        self.b = Param(48, WIDTH)
        self.out = Param(48, WIDTH)

    def forward(self, x: Value) -> Value:
        h = rms_norm(x, self.norm, eps=1e-5)
        return x + (linear(h, self.a) + linear(h, self.b) * 2.0) @ self.out


class Stack(Model):
    """Layers that are rolled, and a table that is also the head."""

    signature = "ids[batch, tokens]:i32 -> y[batch, tokens, 64]"

    def __init__(self) -> None:
        self.table = Param(64, WIDTH)
        self.layers = [Plain() for _ in range(3)]

    def forward(self, ids: Value) -> Value:
        x = embedding(ids, self.table)
        for layer in self.layers:
            x = layer(x)
        return linear(x, self.table)


def everything(form: str) -> Callable[[str, TensorType], Quant | None]:
    return lambda name, kind: Quant.parse(form)


def lowered(layer: Layer, choose: Callable[[str, TensorType], Quant | None],
            verify: bool = False) -> Lowered:
    return run_pipeline(quantised(trace(layer), choose), TARGET, verify=verify)


def params(graph: Graph) -> dict[str, str]:
    """The formats of the params of a graph and of its repeats' bodies."""
    found = {p.name: str(p.type.quant) for p in graph.params if p.type.quant}
    for node in graph.nodes:
        if node.name == "repeat" and node.body is not None:
            found |= {f"repeat.{n}": q for n, q in params(node.body).items()}
    return found


def missed(done: Lowered) -> list[Missed]:
    return [m for report in done.report if report.name == "quantise" for m in report.missed]


def test_weights_are_asked_by_name_and_type() -> None:
    graph = quantised(trace(Plain()), lambda name, kind: Quant(4, 16) if name != "b" else None)
    assert [str(p.type) for p in graph.params] == [
        "f32[32]", "f32[48, 32]@int4:16", "f32[48, 32]", "f32[48, 32]@int4:16"]
    assert text(graph) != text(trace(Plain()))
    again = quantised(graph, lambda name, kind: kind.quant)
    assert again is graph


def test_merged_and_turned_weights_and_all_turns_have_the_format() -> None:
    done = lowered(Stack(), everything("int4:16"), verify=True)
    found = params(done.graph)
    assert set(found.values()) == {"int4:16"}
    assert found["table"] == "int4:16"
    inside = [name for name in found if name.startswith("repeat.")]
    outside = [name for name in found if name.startswith(("concat", "layers", "transpose"))]
    assert len(outside) == 3 * len(inside) >= 6
    assert not missed(done)


def test_turns_of_several_formats_have_the_common_one() -> None:
    forms = {"layers.0.out": "int8:16", "layers.1.out": "int4:16+offset"}
    done = lowered(Stack(), lambda name, kind: Quant.parse(forms.get(name, "int4:16")))
    assert sorted(set(params(done.graph).values())) == ["int4:16", "int8:16+offset"]


@pytest.mark.parametrize(("form", "reason"), [
    ("int4:32", "layers.0.out and 2 more: k is 48, no multiple of the group of 32"),
    ("int4:128", "table: k is 32, no multiple of the group of 128")])
def test_rows_that_are_no_whole_groups(form: str, reason: str) -> None:
    done = lowered(Stack(), everything(form))
    assert reason in [m.reason for m in missed(done)]
    assert all(m.loc is not None for m in missed(done))


def test_what_is_joined_to_a_weight_that_keeps_its_dtype() -> None:
    done = lowered(Stack(), lambda name, kind: None if name == "layers.1.out" else Quant(4, 16))
    reasons = [m.reason for m in missed(done)]
    assert reasons == ["layers.0.out and 2 more: it is joined to layers.1.out, which keeps its "
                       "dtype"]
    assert "table" in params(done.graph)


def test_a_weight_that_is_read_in_another_way() -> None:
    done = lowered(Mixed(), everything("int4:16"), verify=True)
    assert params(done.graph) == {"concat.0": "int4:16"}
    assert [m.reason for m in missed(done)] == [
        f"added: read by add at {line_of('added', __file__)}, which is neither a linear nor an "
        "embedding",
        "few: it has only 8 rows",
        f"scaled: mul at {line_of('scaled', __file__)} computes with it"]
    assert all(m.loc is not None for m in missed(done))


class Heads(Layer):
    """A fused weight whose rows are taken in another order, and one that is read in two ways."""

    signature = f"x[batch, {WIDTH}] -> y[batch, 64], z[batch, {WIDTH}]"

    def __init__(self) -> None:
        self.fused = Param(96, WIDTH)
        self.both = Param(WIDTH, WIDTH)

    def forward(self, x: Value) -> tuple[Value, Value]:
        rows = reshape(self.fused, shape=(4, 3, 8, WIDTH))
        w = reshape(transpose(rows, order=(1, 0, 2, 3))[:2], shape=(64, WIDTH))
        return linear(x, w), linear(x * 2.0, self.both) + (x * 3.0) @ self.both


def test_rows_may_move_but_not_become_columns() -> None:
    done = lowered(Heads(), everything("int4:16"), verify=True)
    assert list(params(done.graph).values()) == ["int4:16"]
    assert [m.reason for m in missed(done)] == [
        "both: both is read by rows and by columns"]


def test_a_target_without_quantised_weights() -> None:
    graph = quantised(trace(Plain()), everything("int4:16"))
    with pytest.raises(GraphError, match=r"the plain backend has no quantised weights\n.*--quant"):
        run_pipeline(graph, PLAIN)
    run_pipeline(trace(Plain()), PLAIN)
