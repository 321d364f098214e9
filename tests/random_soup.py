"""Kernel soup: values of shape [batch, tokens, width] that random steps make of one another.

Values stay of moderate size whatever is drawn, so that outputs can be compared by tolerance.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphdsl.ir import Dim, Graph, Layout, Size, TensorType, Value
from graphdsl.layer import BATCH
from graphdsl.ops.activation import geglu, gelu, gelu_tanh, relu, sigmoid, silu, swiglu
from graphdsl.ops.linear import expert_linear, linear, matmul, matmul_nt
from graphdsl.ops.math import (
    abs,
    cast,
    cos,
    erf,
    exp,
    log,
    logical_and,
    logical_not,
    maximum,
    mean,
    minimum,
    neg,
    reduce_max,
    reduce_min,
    reduce_sum,
    rsqrt,
    sin,
    sqrt,
    tanh,
    where,
)
from graphdsl.ops.norm import layer_norm, rms_norm, softmax
from graphdsl.ops.search import argmax, topk
from graphdsl.ops.shape import concat, expand, gather, reshape, slice, split, take_rows, transpose

TOKENS = Dim("tokens")


@dataclass
class Soup:
    """A graph being drawn: values of shape [batch, tokens, width] and what goes with them."""

    draw: random.Random
    dtype: str
    width: int
    x: Value
    params: list[Value] = field(default_factory=list)
    full: list[Value] = field(default_factory=list)
    rows: list[Value] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    state: dict[Value, Value] = field(default_factory=dict)
    """The last value of every state."""

    def param(self, *shape: int, dtype: str = "") -> Value:
        """A weight; one of the same type is sometimes used again."""
        kind = TensorType(shape, dtype or self.dtype)
        known = [p for p in self.params if p.type == kind]
        if known and self.draw.random() < 0.3:
            return self.draw.choice(known)
        made = Value(kind, name=f"w{len(self.params)}", kind="param")
        self.params.append(made)
        return made

    def input(self, name: str, dtype: str, *shape: Size) -> Value:
        """The input of this name."""
        known = next((v for v in self.inputs if v.name == name), None)
        if known is None:
            known = Value(TensorType(shape, dtype), name=name)
            self.inputs.append(known)
        return known

    @property
    def positions(self) -> Value:
        """Where the tokens stand."""
        return self.input("positions", "i32", *self.x.shape[:2])

    def cache(self, *shape: Size) -> Value:
        """A state, empty so far."""
        kind = TensorType(shape, self.dtype, Layout())
        made = Value(kind, name=f"cache{len(self.state)}", kind="state")
        self.state[made] = made
        return made

    def any(self) -> Value:
        """A value that was made before, a late one with preference."""
        return self.draw.choice(self.full if self.draw.random() < 0.4 else self.full[-4:])

    def other(self) -> Any:
        """Something that is broadcast or not: a value, a row's scalar, a weight, a number."""
        kind = self.draw.randrange(6)
        if kind == 0 and self.rows:
            return self.draw.choice(self.rows)
        if kind == 1:
            return self.param(self.width)
        if kind == 2:
            return self.draw.choice([1.0, 0.0, 0.5, -2.0])
        if kind == 3:
            return self.param(1)
        return self.any()


def _pointwise(s: Soup) -> Value:
    x: Value = s.any()
    return s.draw.choice([
        lambda: tanh(x), lambda: neg(x), lambda: abs(x), lambda: exp(tanh(x)),
        lambda: log(abs(x) + 0.5), lambda: sqrt(abs(x)), lambda: rsqrt(x * x + 0.5),
        lambda: sin(x), lambda: cos(x), lambda: erf(x), lambda: silu(x), lambda: gelu(x),
        lambda: gelu_tanh(x), lambda: relu(x), lambda: sigmoid(x)])()


def _binary(s: Soup) -> Value:
    x, y = s.any(), s.other()
    if s.draw.random() < 0.2 and isinstance(y, Value):
        x, y = y, x
    made: Value = s.draw.choice([
        lambda: x + y, lambda: x - y, lambda: tanh(x) * y, lambda: maximum(x, y),
        lambda: minimum(x, y), lambda: x / (abs(y) + 0.5 if isinstance(y, Value) else 2.0),
        lambda: y + x, lambda: 1.0 - x])()
    return made if made.shape == s.x.shape else made + s.any()


def _gated(s: Soup) -> Value:
    x = s.any()
    gate, up = _linear_of(s, x), _linear_of(s, x)
    return s.draw.choice([lambda: silu(gate) * up, lambda: up * gelu(gate),
                          lambda: swiglu(gate, up), lambda: geglu(gate, up),
                          lambda: tanh(gate) * tanh(up)])()


def _choice(s: Soup) -> Value:
    x, y = s.any(), s.any()
    condition = s.draw.choice([
        lambda: x < y, lambda: x >= 0.0, lambda: logical_not(x > y),
        lambda: logical_and(x > -1.0, y < 1.0)])()
    chosen: Value = where(condition, x, s.draw.choice([y, 0.0, s.param(s.width)]))
    return chosen


def _rounded(s: Soup) -> Value:
    x = s.any()
    return cast(cast(x, dtype=s.draw.choice(["bf16", "f32"])), dtype=s.dtype)


def _reduced(s: Soup) -> Value:
    x = s.any()
    row = s.draw.choice([
        lambda: reduce_sum(x) * (1.0 / s.width), lambda: reduce_max(x), lambda: reduce_min(x),
        lambda: mean(x * x), lambda: sqrt(mean(abs(x)))])()
    s.rows.append(row)
    if s.draw.random() < 0.3:
        s.rows.append(tanh(row + s.draw.choice(s.rows)))
    return s.any() - row


def _normed(s: Soup) -> Value:
    x, weight = s.any(), s.param(s.width)
    total = x + s.any()
    return s.draw.choice([
        lambda: rms_norm(x, weight, eps=1e-3), lambda: rms_norm(total, weight, eps=1e-3) + total,
        lambda: softmax(x) * 4.0, lambda: layer_norm(x, weight, s.param(s.width), eps=1e-3),
        lambda: layer_norm(total, weight, eps=1e-3)])()


def _linear_of(s: Soup, x: Value) -> Value:
    weight = s.param(s.width, s.width)
    return s.draw.choice([lambda: linear(x, weight), lambda: linear(x, weight, s.param(s.width)),
                          lambda: matmul_nt(x, weight)])()


def _linear(s: Soup) -> Value:
    x = s.any()
    made = [_linear_of(s, x) for _ in range(s.draw.choice([1, 1, 2, 3]))]
    s.full += made[1:]
    return s.draw.choice([lambda: made[0], lambda: x + made[0], lambda: gelu(made[0]),
                          lambda: made[0] * made[-1]])()


def _uneven(s: Soup) -> Value:
    """Linears of different widths, put together again."""
    x, half = s.any(), s.width // 2
    pieces = [linear(x, s.param(size, s.width)) for size in (half, s.width, s.width - half)]
    s.full.append(pieces[1])
    made: Value = concat(tanh(pieces[0]), pieces[2], axis=-1)
    return made


def _viewed(s: Soup) -> Value:
    x, (b, t, d) = s.any(), s.x.shape
    heads = reshape(x, shape=(b, t, 2, s.width // 2))
    half = s.width // 2
    first, second = split(x, sizes=(half, s.width - half), axis=-1)
    return s.draw.choice([
        lambda: reshape(heads * 2.0, shape=(b, t, d)),
        lambda: reshape(softmax(heads), shape=(b, t, d)),
        lambda: transpose(tanh(transpose(x, order=(0, 2, 1))), order=(0, 2, 1)),
        lambda: reshape(transpose(transpose(heads, order=(0, 2, 1, 3)), order=(0, 2, 1, 3)),
                        shape=(b, t, d)),
        lambda: concat(second, first, axis=2), lambda: concat(first, second, axis=-1),
        lambda: x * expand(slice(x, axis=2, start=1, size=1), shape=(b, t, s.width)),
        lambda: x - x[:, :, 0:1], lambda: x[:, -1:] + x])()


def _scores(s: Soup) -> Value:
    """Attention written as plain maths, over tokens alone."""
    (b, t, d), half = s.x.shape, s.width // 2

    def heads(x: Value) -> Value:
        return transpose(reshape(x, shape=(b, t, 2, half)), order=(0, 2, 1, 3))

    q, k, v = heads(s.any()), heads(s.any()), heads(s.any())
    weights = softmax(matmul(q, transpose(k, order=(0, 1, 3, 2))) * half ** -0.5)
    return reshape(transpose(matmul(weights, v), order=(0, 2, 1, 3)), shape=(b, t, d))


def _looked_up(s: Soup) -> Value:
    """Rows that are chosen by numbers: of a table, of an expert, of the same sequence."""
    x, chosen = s.any(), argmax(s.any())
    square = s.param(s.width, s.width)
    experts = expand(reshape(square, shape=(1, s.width, s.width)), shape=(s.width, *square.shape))
    return s.draw.choice([
        lambda: gather(square, chosen), lambda: expert_linear(x, tanh(experts), chosen),
        lambda: take_rows(x, where(chosen < 0, chosen, chosen - chosen)) + x])()


def _mixed(s: Soup) -> Value:
    """Gate and up by the same experts of the same rows."""
    x, chosen = s.any(), argmax(s.any())
    gate, up = (s.param(s.width, s.width, s.width) for _ in range(2))
    made: Value = silu(expert_linear(x, gate, chosen)) * expert_linear(x, up, chosen)
    return made


def _found(s: Soup) -> Value:
    values, places = topk(s.any(), k=2)
    s.rows.append(reshape(values[:, :, 1:2] - 0.5, shape=(*s.x.shape[:2], 1)))
    late = cast(places[..., 0] + 1, dtype=s.dtype)[..., None] * (1.0 / s.width)
    return s.any() * late


def _down_the_tokens(s: Soup) -> Value:
    """Reductions along an axis whose size is symbolic."""
    turned = transpose(s.any(), order=(0, 2, 1))
    made = s.draw.choice([
        lambda: softmax(turned), lambda: turned - reduce_max(turned),
        lambda: tanh(turned) * reduce_min(turned)])()
    return transpose(made, order=(0, 2, 1))


def _lengthened(s: Soup) -> Value:
    """Twice the tokens, then the first ones again: sizes that are sums of dims."""
    t = s.x.shape[1]
    both = tanh(concat(s.any(), s.any(), axis=1))
    return slice(both, axis=1, start=s.draw.choice([0, t]), size=t)


Step = Callable[[Soup], Value]
Steps = tuple[tuple[Step, float], ...]

STEPS: Steps = (
    (_pointwise, 4), (_binary, 6), (_gated, 2), (_choice, 2), (_rounded, 1), (_reduced, 3),
    (_normed, 3), (_linear, 3), (_uneven, 1), (_viewed, 3), (_scores, 1), (_looked_up, 1),
    (_mixed, 1),
    (_found, 1), (_down_the_tokens, 1), (_lengthened, 1))
"""What a soup is made of, and how often."""


def soup(name: str, draw: random.Random, dtype: str, steps: Steps, most: int,
         certain: Sequence[Step] = ()) -> Graph:
    """A graph of up to `most` random steps with one to three outputs; the `certain` steps are
    among them, and what they make are outputs too."""
    width = draw.choice([6, 8, 12, 16])
    x = Value(TensorType((BATCH, TOKENS, width), dtype), name="x")
    s = Soup(draw, dtype, width, x, full=[x], inputs=[x])
    makers, weights = zip(*steps, strict=True)
    todo = [*draw.choices(makers, weights, k=draw.randint(4, most)), *certain]
    draw.shuffle(todo)
    kept = []
    for step in todo:
        s.full.append(step(s))
        kept += [s.full[-1]] if step in certain else []
    made = [v for v in s.full[1:] if v.node]
    made += [r for r in s.rows if draw.random() < 0.2]
    outputs = dict.fromkeys([s.full[-1], *kept,
                             *draw.sample(made, min(len(made), draw.randint(0, 2)))])
    return Graph(name, tuple(s.inputs), tuple(s.params), tuple(s.state),
                 (*(v for v in outputs if v.node), *s.state.values()))
