"""The core: sizes, signatures, ops, tracing of layers, the reference and the printer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch

from graphdsl import KVCache, Layer, Model, Param, Value, kernel, operation, ops, trace
from graphdsl.errors import GraphError
from graphdsl.ir import (
    Dim,
    Graph,
    Size,
    TensorType,
    affine,
    scaled,
    size_value,
    upper_bound,
)
from graphdsl.printer import dot, text
from graphdsl.reference import error_of, run
from graphdsl.settings import configured
from graphdsl.signature import parse_signature

TOKENS, PAST = Dim("tokens", 1, 64), Dim("past", 0, 100)
B = Dim("batch")


# Sizes: what arithmetic gives, as text.
@pytest.mark.parametrize(("size", "shown"), [
    (TOKENS + 1, "tokens + 1"), (1 + TOKENS, "tokens + 1"), (TOKENS + PAST, "past + tokens"),
    (TOKENS - 1, "tokens + -1"), (2 * TOKENS, "2*tokens"), (TOKENS * 2 + TOKENS, "3*tokens"),
    (TOKENS - TOKENS, "0"), (TOKENS + PAST - TOKENS, "past"), ((TOKENS + 3) - 3, "tokens"),
    (2 * (TOKENS + 3) - PAST, "-1*past + 2*tokens + 6")])
def test_arithmetic_of_sizes(size: Size, shown: str) -> None:
    assert str(size) == shown


def test_sizes_simplify_to_what_they_are() -> None:
    assert TOKENS + PAST == PAST + TOKENS
    assert TOKENS + PAST - PAST is not None
    assert (TOKENS + PAST) - PAST == TOKENS
    assert isinstance(TOKENS - TOKENS, int)
    assert affine({TOKENS: 1, PAST: 0}, 0) == TOKENS
    assert scaled(TOKENS + 1, 0) == 0


def test_values_and_bounds_of_sizes() -> None:
    size = 2 * TOKENS - PAST + 5
    assert size_value(size, {"tokens": 7, "past": 3}) == 16
    assert upper_bound(size) == 2 * 64 - 0 + 5
    assert -upper_bound(scaled(size, -1)) == 2 * 1 - 100 + 5
    with pytest.raises(KeyError):
        size_value(size, {"tokens": 7})


def kind(*shape: Size, dtype: str = "f32") -> TensorType:
    return TensorType(shape, dtype)


@pytest.mark.parametrize("signature", [
    "x[*b, k], w[n, k] -> y[*b, n]", "x[b, t], positions?[b, t]:i32 -> y[b, 2]",
    "x[], mask?[*m]:M -> y[*m]:M", "ids[batch, tokens]:i32 -> y[batch, tokens], z[tokens]"])
def test_signatures_print_as_they_are_written(signature: str) -> None:
    assert str(parse_signature(signature)) == signature


def test_signatures_give_the_results() -> None:
    check = parse_signature("x[*b, k], w[n, k], bias?[n] -> y[*b, n], top[*b]:i32").check
    x, w = kind(B, TOKENS, 8, dtype="bf16"), kind(4, 8, dtype="bf16")
    expected = kind(B, TOKENS, 4, dtype="bf16"), kind(B, TOKENS, dtype="i32")
    assert check([x, w]) == expected
    assert check([x, w, kind(4, dtype="bf16")]) == expected
    assert check([kind(8), kind(4, 8)]) == (kind(4), kind(dtype="i32"))


@pytest.mark.parametrize(("types", "message"), [
    ([kind(B, 8), kind(4, 7)], r"w is f32\[4, 7\]: k is 7, but it has to be 8"),
    ([kind(B, 8), kind(7)], r"w is f32\[7\], wanted w\[n, k\] \(k = 8\)"),
    ([kind(), kind(4, 8)], r"x is f32\[\], wanted x\[\*b, k\]"),
    ([kind(B, 8, dtype="i32"), kind(4, 8)], r"x is i32\[batch, 8\], wanted a floating dtype"),
    ([kind(B, 8, dtype="bf16"), kind(4, 8)], r'w is f32\[4, 8\], wanted bf16(.|\n)*cast\(w, dtype'),
    ([kind(B, TOKENS), kind(4, PAST)], "k is past, but it has to be tokens"),
    ([kind(B, 8)], "1 operands given, 2 wanted")])
def test_signatures_refuse(types: list[TensorType], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        parse_signature("x[*b, k], w[n, k] -> y[*b, n]").check(types)


@pytest.mark.parametrize(("signature", "message"), [
    ("x[b, t -> y[b]", r"cannot read 'x\[b, t'"), ("x -> y[b]", "cannot read 'x'"),
    ("x[b]:fp16 -> y[b]", "no dtype 'fp16'")])
def test_signatures_that_cannot_be_read(signature: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        parse_signature(signature)


@operation("x[*b, d], scale?[d] -> y[*b, d]")
def doubled(x: Value, scale: Value | None = None, *, times: int = 2) -> Value:
    y = x * float(times)
    return y if scale is None else y * scale


@operation("x[*b, d] -> y[*b, d]")
def liar(x: Value) -> Value:
    total: Value = ops.reduce_sum(x)
    return total


@operation
def forgetful(x: Value) -> None:
    ops.exp(x)


X = Value(kind(TOKENS, 8), name="x")
V = Value(kind(8), name="v")


def test_an_operation_is_one_node_with_a_body() -> None:
    y = doubled(X, V)
    assert [y.node.name, y.type] == ["doubled", X.type]
    assert [n.name for n in y.node.body.nodes] == ["constant", "mul", "mul"]
    assert doubled(X, V).node.body is y.node.body
    assert doubled(X, V, times=3).node.body is not y.node.body
    assert len(doubled(X).node.body.inputs) == 1


def line_of(function: Callable[..., Any]) -> int:
    return function.__code__.co_firstlineno


@pytest.mark.parametrize(("call", "message"), [
    (lambda: doubled(X, X), r"doubled: scale is f32\[tokens, 8\], wanted scale\?\[d\]"),
    (lambda: doubled(X, time=3), r"no attribute time(.|\n)*doubled\(x, scale=None, \*, times=2\)"),
    (lambda: doubled(X, times=V), "the attribute times is a Value"),
    (lambda: 1 if X > 0 else 2, "is used as a condition(.|\n)*where"),
    (lambda: [row for row in X], r"a loop over f32\[tokens, 8\]"),
    (lambda: operation("x[b] -> y[c]")(abs), "the size c of a result"),
    (lambda: kernel("x[b")(abs), "cannot read"),
    (lambda: Param(8, 0), "whole numbers above 0"),
    (lambda: Param(8, dtype="float"), "no dtype 'float'"),
])
def test_mistakes_name_the_users_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        call()
    assert str(caught.value.loc) == f"test_core.py:{line_of(call)}"


@pytest.mark.parametrize(("made", "message"), [
    (liar, r"liar returns f32\[tokens, 1\]; its signature promises f32\[tokens, 8\]"),
    (forgetful, "forgetful returns NoneType")])
def test_operations_have_to_return_what_they_promise(made: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        made(X)
    # The line of the decorator: what is wrong is the operation, not its caller.
    assert str(caught.value.loc) == f"test_core.py:{line_of(made.function)}"


def test_a_value_with_a_static_first_size_can_be_unpacked() -> None:
    first, second = Value(kind(2, TOKENS), name="x")
    assert first.shape == second.shape == (TOKENS,)


class Numbers(NamedTuple):
    hidden: int = 8
    names: tuple[str, ...] = ("a",)


class Inner(Layer):
    signature = "x[batch, tokens, hidden], positions[batch, tokens]:i32 -> y[batch, tokens, hidden]"

    def __init__(self, config: Numbers) -> None:
        self.config = config
        self.norm = Param(config.hidden)
        self.kv = KVCache(2, 4)

    def forward(self, x: Value, positions: Value) -> Value:
        h = ops.split_heads(ops.rms_norm(x, self.norm, eps=1e-5), 2)
        kv = self.kv.append(h, h, positions)
        return x + ops.merge_heads(ops.attention(h, kv.k, kv.v, positions))


class Outer(Model):
    signature = "x[batch, tokens, hidden], positions[batch, tokens]:i32 -> y[batch, tokens, hidden]"

    def __init__(self, config: Numbers = Numbers()) -> None:  # noqa: B008 (a tuple of numbers)
        self.config = config
        self.first = Param(config.hidden, config.hidden)
        self.layers = [Inner(config), Inner(config)]
        self.more = {"last": Inner(config)}
        self.tied = self.first
        self.bias = Param(config.hidden, dtype="f32")

    def forward(self, x: Value, positions: Value) -> Value:
        x = ops.linear(x, self.first)
        for layer in [*self.layers, self.more["last"], self.layers[0]]:
            x = layer(x, positions)
        return ops.linear(x, self.tied) + ops.cast(self.bias, dtype=x.dtype)


def test_params_and_state_are_named_by_their_path() -> None:
    graph = trace(Outer(), "bf16")
    assert [v.name for v in graph.inputs] == ["x", "positions"]
    assert [v.name for v in graph.params] == [
        "first", "layers.0.norm", "layers.1.norm", "more.last.norm", "bias"]
    assert [v.dtype for v in graph.params] == ["bf16"] * 4 + ["f32"]
    assert [v.name for v in graph.state] == [
        f"{path}.kv.{part}" for path in ("layers.0", "layers.1", "more.last") for part in "kv"]
    assert str(graph.state[0].type) == "bf16[batch, slots, 2, 4]@bsnd"
    layers = [n for n in graph.nodes if n.name == "Inner"]
    assert [n.scope for n in layers] == ["layers.0", "layers.1", "more.last", "layers.0"]
    assert all(n.loc.file.endswith("test_core.py") for n in graph.nodes)


def test_a_layer_called_twice_goes_on_with_its_state() -> None:
    graph = trace(Outer())
    layers = [n for n in graph.nodes if n.name == "Inner"]
    assert layers[3].inputs[2:4] == layers[0].outputs[1:]
    assert graph.new_state[:2] == layers[3].outputs[1:]
    assert [v.type for v in graph.new_state] == [v.type for v in graph.state]


def test_tracing_leaves_the_layer_alone() -> None:
    layer = Outer()
    before = text(trace(layer))
    assert text(trace(layer)) == before
    with pytest.raises(GraphError, match="Inner is called outside of a trace"):
        layer.layers[0](X, X)
    with pytest.raises(GraphError, match="append on a cache outside of a trace"):
        layer.layers[0].kv.append(X, X, X)


def test_layers_in_the_reference() -> None:
    graph = trace(Outer())
    params = {v.name: torch.randn(v.shape) for v in graph.params}
    state = {v.name: torch.zeros(1, 6, 2, 4) for v in graph.state}
    x = torch.randn(1, 3, 8)
    positions = torch.arange(3, dtype=torch.int32)[None]
    y, *new = run(graph, {"x": x, "positions": positions}, params, state)
    assert y.shape == x.shape
    assert all(t.shape == (1, 6, 2, 4) for t in new)
    assert not any(t.any() for t in state.values())
    exact = run(graph, [x, positions], params, state, exact=True)[0]
    assert exact.dtype == torch.float64
    assert 0 < error_of(y, exact) < 1e-5


def layer_of(signature: str, forward: Callable[..., Any], **attributes: Any) -> Layer:
    """A Layer of this signature and forward, with attributes as its __init__ would set them."""
    made: Layer = type("Made", (Layer,), {"signature": signature, "forward": forward})()
    vars(made).update(attributes)
    return made


@dataclass(frozen=True)
class Hidden:
    hidden: int = 8


SAME = "x[batch, 8] -> y[batch, 8]"
BAD_LAYERS: list[tuple[str, Callable[..., Any], str]] = [
    (SAME, lambda self, x: None, "forward returns NoneType for y"),
    (SAME, lambda self, x: (x, x), "forward returns 2 values, the signature promises 1"),
    (SAME, lambda self, x: ops.reduce_sum(x), r"y is f32\[batch, 1\], the signature promises f32"),
    (SAME, lambda self, x: x > 0, r"y is bool\[batch, 8\]"),
    (SAME, lambda self, x, z: x, "forward takes 2 inputs, the signature declares 1"),
    (SAME, lambda self, x: x + "1", "add: an operand is str '1'"),
    ("", lambda self, x: x, "Made has no signature"),
    ("x[batch -> y[batch]", lambda self, x: x, "cannot read"),
    ("x[batch]:half -> y[batch]", lambda self, x: x, "no dtype 'half'"),
    ("x[batch, n] -> y[batch, 2*n]", lambda self, x: ops.concat(x, x, axis=1),
     r"'2\*n' in y\[batch, 2\*n\] is neither a name nor a number(.|\n)*of the config"),
]


@pytest.mark.parametrize(("signature", "forward", "message"), BAD_LAYERS)
def test_bad_layers_are_refused(signature: str, forward: Callable[..., Any], message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        trace(layer_of(signature, forward))
    assert str(caught.value.loc) == f"test_core.py:{line_of(forward)}"


def test_layers_called_wrongly_are_refused() -> None:
    inner = layer_of("x[batch, hidden] -> y[batch, hidden]", lambda self, x: x, config=Hidden())
    for forward, message in [
            (lambda self, x: self.inner(x, x), "Made: 2 inputs given, 1 wanted"),
            (lambda self, x: self.inner(1), "Made: x is int"),
            (lambda self, x: self.inner(x[:, :4]), r"x is f32\[batch, 4\]: hidden is 4, but"),
            (lambda self, x: self.inner(x > 0), r"x is bool\[batch, 8\], wanted a float")]:
        with pytest.raises(GraphError, match=message) as caught:
            trace(layer_of(SAME, forward, inner=inner))
        assert str(caught.value.loc) == f"test_core.py:{line_of(forward)}"


def test_other_mistakes_of_layers() -> None:
    with pytest.raises(GraphError, match=r"x is an input, and self\.x is another value"):
        trace(layer_of(SAME, lambda self, x: x, x=Param(8)))
    with pytest.raises(GraphError, match="Made has no forward"):
        trace(type("Made", (Layer,), {"signature": SAME})())
    with pytest.raises(GraphError, match="is neither a Layer nor a Graph"):
        trace(Outer)
    with pytest.raises(GraphError, match="no layer of dtype 'float32'"):
        trace(Outer(), "float32")
    with pytest.raises(GraphError, match=r"self\.scaled is computed in __init__"):
        trace(layer_of(SAME, lambda self, x: x * self.scaled,
                       scaled=Param(8, dtype="f32") * 2.0))


def test_settings_of_a_config() -> None:
    @dataclass(frozen=True)
    class Config:
        heads: int = 4
        eps: float = 1e-5
        tied: bool = False

    changed = configured(Config(), {"heads": "8", "eps": "0.5", "tied": "true"})
    assert changed == Config(8, 0.5, True)
    with pytest.raises(GraphError, match=r"no field head(.|\n)*heads, eps, tied"):
        configured(Config(), {"head": "8"})
    with pytest.raises(GraphError, match="'x' is not int"):
        configured(Config(), {"heads": "x"})


SIMPLE = Graph("test", (X,), (), (), (ops.exp(X),))


@pytest.mark.parametrize(("inputs", "message"), [
    ({}, "test: input x is missing"),
    ([], "test: 0 inputs given, 1 wanted: x"),
    ([torch.ones(2, 7)], r"x is \[2, 7\]: 8 is 7, but it has to be 8"),
    ([torch.ones(8)], r"x has 1 dims \[8\], wanted f32\[tokens, 8\]")])
def test_the_reference_refuses(inputs: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        run(SIMPLE, inputs, {})


def test_one_dim_has_one_size() -> None:
    other = Value(kind(TOKENS), name="y")
    graph = Graph("test", (X, other), (), (), (ops.exp(X),))
    with pytest.raises(GraphError, match=r"y is \[3\]: tokens is 3, but it has to be 2"):
        run(graph, [torch.ones(2, 8), torch.ones(3)], {})


def test_error_is_relative_to_the_largest() -> None:
    reference = torch.tensor([4.0, -2.0])
    assert error_of(torch.tensor([4.0, -1.0]), reference) == 0.25
    assert error_of(torch.tensor([4.0, torch.nan]), reference) == float("inf")
    unbounded = torch.tensor([torch.nan, torch.inf, 4.0])
    assert error_of(torch.tensor([torch.nan, torch.inf, 3.0]), unbounded) == 0.25
    assert error_of(torch.tensor([torch.nan, -torch.inf, 4.0]), unbounded) == float("inf")
    assert error_of(torch.tensor([torch.inf, torch.nan, 4.0]), unbounded) == float("inf")
    assert error_of(torch.tensor([torch.nan, 4.0, 4.0]), unbounded) == float("inf")
    assert error_of(torch.zeros(0), torch.zeros(0)) == 0.0


def test_printed_graphs() -> None:
    class Gated(Layer):
        signature = "x[batch, tokens, 8] -> y[batch, tokens, 8]"

        def __init__(self) -> None:
            self.gate = Param(8, 8)

        def forward(self, x: Value) -> Value:
            h = ops.linear(x, self.gate)
            return ops.silu(h) * ops.reshape(x, shape=x.shape)

    graph = trace(Gated(), "bf16")
    first = line_of(Gated.forward) + 1
    assert text(graph) == f"""\
graph Gated:
  input %x : bf16[batch, tokens, 8]
  param %gate : bf16[8, 8]
  %0 = linear(%x, %gate) : bf16[batch, tokens, 8]  # test_core.py:{first}
  %1 = silu(%0) : bf16[batch, tokens, 8]  # test_core.py:{first + 1}
  %2 = reshape(%x, shape=(batch, tokens, 8)) : bf16[batch, tokens, 8]  # test_core.py:{first + 1}
  %3 = mul(%1, %2) : bf16[batch, tokens, 8]  # test_core.py:{first + 1}
  return %3"""
    assert "#" not in text(graph, locations=False)
    drawn = dot(graph)
    assert drawn.startswith('digraph "Gated"')
    assert drawn.count("->") == 7
