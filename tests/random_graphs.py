"""Random graphs for the passes and the backends: kernel soup, and Layers and Models.

Values stay of moderate size whatever is drawn, so that outputs can be compared by tolerance.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from graphdsl.ir import Dim, Graph, TensorType, Value
from graphdsl.layer import BATCH, KVCache, Layer, Model, Param, trace
from graphdsl.ops.activation import geglu, gelu, gelu_tanh, relu, sigmoid, silu, swiglu
from graphdsl.ops.attention import attention
from graphdsl.ops.linear import embedding, expert_linear, linear, matmul, matmul_nt
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
from graphdsl.ops.position import rope, rope_angles
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

    def param(self, *shape: int) -> Value:
        """A weight; one of the same shape is sometimes used again."""
        known = [p for p in self.params if p.shape == shape]
        if known and self.draw.random() < 0.3:
            return self.draw.choice(known)
        made = Value(TensorType(shape, self.dtype), name=f"w{len(self.params)}", kind="param")
        self.params.append(made)
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


STEPS: tuple[tuple[Callable[[Soup], Value], int], ...] = (
    (_pointwise, 4), (_binary, 6), (_gated, 2), (_choice, 2), (_rounded, 1), (_reduced, 3),
    (_normed, 3), (_linear, 3), (_uneven, 1), (_viewed, 3), (_scores, 1), (_looked_up, 1),
    (_found, 1), (_down_the_tokens, 1), (_lengthened, 1))


def kernel_soup(seed: int, dtype: str = "f32", most: int = 22) -> Graph:
    """A graph of up to `most` random steps with one to three outputs."""
    draw = random.Random(seed)
    width = draw.choice([6, 8, 12, 16])
    x = Value(TensorType((BATCH, TOKENS, width), dtype), name="x")
    soup = Soup(draw, dtype, width, x, full=[x])
    steps, weights = zip(*STEPS, strict=True)
    for step in draw.choices(steps, weights, k=draw.randint(4, most)):
        soup.full.append(step(soup))
    made = [v for v in soup.full[1:] if v.node] + [r for r in soup.rows if draw.random() < 0.2]
    outputs = dict.fromkeys([soup.full[-1], *draw.sample(made, min(len(made), draw.randint(0, 2)))])
    return Graph(f"soup{seed}", (x,), tuple(soup.params), (), tuple(v for v in outputs if v.node))


@dataclass(frozen=True)
class Shape:
    """What a random Layer looks like."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    norm: str = "rms"
    act: str = "swiglu"
    bias: bool = False
    rotary: float = 1.0
    interleaved: bool = False
    window: int = 0
    parallel: bool = False
    eps: float = 1e-5


def random_shape(draw: random.Random) -> Shape:
    """Sizes and variants of a decoder layer."""
    kv_heads = draw.choice([1, 2])
    return Shape(hidden=draw.choice([12, 16, 20]), heads=kv_heads * draw.choice([1, 2]),
                 kv_heads=kv_heads, head_dim=draw.choice([4, 8]), ffn=draw.choice([9, 16, 24]),
                 norm=draw.choice(["rms", "rms", "layer"]),
                 act=draw.choice(["swiglu", "swiglu", "geglu", "gelu"]),
                 bias=draw.random() < 0.4, rotary=draw.choice([1.0, 1.0, 0.5]),
                 interleaved=draw.random() < 0.3, window=draw.choice([0, 0, 2]),
                 parallel=draw.random() < 0.2)


class DecoderLayer(Layer):
    """A decoder layer of some Shape."""

    signature = ("x[batch, tokens, hidden], positions[batch, tokens]:i32"
                 " -> y[batch, tokens, hidden]")

    def __init__(self, config: Shape) -> None:
        self.config = c = config
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.norms = [[Param(c.hidden), Param(c.hidden)] for _ in range(2)]
        self.wq, self.wk, self.wv = Param(q, c.hidden), Param(kv, c.hidden), Param(kv, c.hidden)
        self.biases = [Param(q), Param(kv), Param(kv)] if c.bias else []
        self.wo, self.up, self.down = Param(c.hidden, q), Param(c.ffn, c.hidden), Param(
            c.hidden, c.ffn)
        self.gate = [Param(c.ffn, c.hidden)] if c.act != "gelu" else []
        self.kv = KVCache(c.kv_heads, c.head_dim)

    def normed(self, x: Value, number: int) -> Value:
        weight, bias = self.norms[number]
        if self.config.norm == "layer":
            return layer_norm(x, weight, bias, eps=self.config.eps)
        return rms_norm(x, weight, eps=self.config.eps)

    def attend(self, h: Value, positions: Value) -> Value:
        c, (b, t, _) = self.config, h.shape
        weights = zip((self.wq, self.wk, self.wv), self.biases or (None, None, None), strict=True)
        q, k, v = (linear(h, w, bias) for w, bias in weights)
        q = reshape(q, shape=(b, t, c.heads, c.head_dim))
        k, v = (reshape(x, shape=(b, t, c.kv_heads, c.head_dim)) for x in (k, v))
        cos, sin = rope_angles(positions, rotary_dim=int(c.head_dim * c.rotary), theta=1e4)
        turned = rope(k, cos, sin, interleaved=c.interleaved)
        kv = self.kv.append(turned, v, positions)
        out = attention(rope(q, cos, sin, interleaved=c.interleaved), kv.k, kv.v, positions,
                        window=c.window)
        return linear(reshape(out, shape=(b, t, c.heads * c.head_dim)), self.wo)

    def feed(self, h: Value) -> Value:
        if not self.gate:
            return linear(gelu(linear(h, self.up)), self.down)
        act = silu if self.config.act == "swiglu" else gelu
        return linear(act(linear(h, self.gate[0])) * linear(h, self.up), self.down)

    def forward(self, x: Value, positions: Value) -> Value:
        attended = self.attend(self.normed(x, 0), positions)
        if self.config.parallel:
            return x + attended + self.feed(self.normed(x, 1))
        x = x + attended
        return x + self.feed(self.normed(x, 1))


@dataclass(frozen=True)
class ModelShape:
    """The Layers of a random Model, first to last."""

    layers: tuple[Shape, ...]
    vocab: int

    @property
    def hidden(self) -> int:
        return self.layers[0].hidden


class DecoderModel(Model):
    """Embedding, Layers, a norm and a head that is tied to the embedding."""

    signature = ("ids[batch, tokens]:i32, positions[batch, tokens]:i32"
                 " -> logits[batch, tokens, vocab]")

    def __init__(self, config: ModelShape) -> None:
        self.config = config
        self.table = Param(config.vocab, config.hidden)
        self.layers = [DecoderLayer(shape) for shape in config.layers]
        self.norm = Param(config.hidden)

    def forward(self, ids: Value, positions: Value) -> Value:
        x = embedding(ids, self.table)
        for layer in self.layers:
            x = layer(x, positions)
        return linear(rms_norm(x, self.norm, eps=1e-5), self.table)


def random_layer(seed: int, dtype: str = "f32") -> Graph:
    """A decoder layer of random sizes and variants."""
    return trace(DecoderLayer(random_shape(random.Random(seed))), dtype)


def random_model(seed: int, dtype: str = "f32") -> Graph:
    """A Model of one to five Layers: all equal, alternating windows, or one that differs."""
    draw = random.Random(seed)
    shape = random_shape(draw)
    count = draw.randint(1, 5)
    layers = [shape] * count
    kind = draw.randrange(3)
    if kind == 1:
        layers = [replace(shape, window=(i % 2) * 3) for i in range(count)]
    if kind == 2:
        layers[draw.randrange(count)] = replace(shape, eps=1e-3)
    return trace(DecoderModel(ModelShape(tuple(layers), draw.choice([11, 19]))), dtype)
