"""Random decoder Layers and Models: sizes, variants, and how their maths is written."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import random_plain as plain

from graphdsl.ir import Graph, Value
from graphdsl.layer import KVCache, Layer, Model, Param, trace
from graphdsl.ops.activation import gelu, gelu_tanh, relu, silu
from graphdsl.ops.attention import attention
from graphdsl.ops.linear import embedding, expert_linear, linear
from graphdsl.ops.math import maximum, reduce_sum, tanh
from graphdsl.ops.norm import rms_norm, softmax
from graphdsl.ops.position import rope, rope_angles
from graphdsl.ops.search import topk
from graphdsl.ops.shape import expand, reshape, split, transpose

ACTS = ("silu", "silu", "gelu", "gelu_tanh", "relu")
EXPERTS = 3
LIBRARY: dict[str, Any] = {"silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh, "relu": relu}


@dataclass(frozen=True)
class Shape:
    """What a random Layer looks like. `spelling` is the seed of how its maths is written; 0 uses
    the Operations of the library."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    norm: str = "rms"
    act: str = "silu"
    gated: bool = True
    bias: bool = False
    rotary: float = 1.0
    interleaved: bool = False
    window: int = 0
    softcap: float = 0.0
    scale: float | None = None
    parallel: bool = False
    sandwich: bool = False
    one_plus: bool = False
    head_norms: bool = False
    fused: bool = False
    turned_weights: bool = False
    experts: bool = False
    given_angles: bool = False
    plain_attention: bool = False
    theta: float = 1e4
    eps: float = 1e-5
    spelling: int = 0

    @property
    def angles(self) -> int:
        """The width of the rope tables."""
        return int(self.head_dim * self.rotary) // 2


def random_shape(draw: random.Random) -> Shape:
    """Sizes and variants of a decoder layer."""
    kv_heads = draw.choice([1, 2])

    def some(chance: float) -> bool:
        return draw.random() < chance

    return Shape(hidden=draw.choice([12, 16, 20]), heads=kv_heads * draw.choice([1, 2]),
                 kv_heads=kv_heads, head_dim=draw.choice([4, 8]), ffn=draw.choice([9, 16, 24]),
                 norm=draw.choice(["rms", "rms", "layer"]), act=draw.choice(ACTS),
                 gated=some(0.75), bias=some(0.4), rotary=draw.choice([1.0, 1.0, 0.5, 0.0]),
                 interleaved=some(0.3), window=draw.choice([0, 0, 2]),
                 softcap=draw.choice([0.0, 0.0, 0.0, 5.0]), scale=draw.choice([None, None, 0.25]),
                 parallel=some(0.2), sandwich=some(0.2), one_plus=some(0.25),
                 head_norms=some(0.3), fused=some(0.25), turned_weights=some(0.15),
                 experts=some(0.1), given_angles=some(0.4),
                 plain_attention=some(0.3), theta=draw.choice([1e4, 1e6]),
                 spelling=draw.choice([0, draw.randrange(1, 1000)]))


class Spelling:
    """How one Layer writes its maths: always the same for one Shape, so that equal Layers are."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.draw = random.Random(shape.spelling or 1)

    def norm(self, x: Value, weight: Value, bias: Value) -> Value:
        c = self.shape
        if c.norm == "layer":
            given = bias if c.bias or not c.spelling else None
            return plain.spelled_layer_norm(self.draw, x, weight, given, c.eps)
        if c.spelling or c.one_plus:
            return plain.spelled_rms_norm(self.draw, x, weight, c.eps, one_plus=c.one_plus)
        return rms_norm(x, weight, eps=c.eps)

    def linear(self, x: Value, weight: Value, bias: Value | None = None) -> Value:
        if self.shape.turned_weights:
            weight = transpose(weight, order=(1, 0))
        if self.shape.spelling:
            return plain.spelled_linear(self.draw, x, weight, bias)
        return linear(x, weight) if bias is None else linear(x, weight, bias)


    def rope(self, x: Value, cos: Value, sin: Value) -> Value:
        c = self.shape
        if c.spelling:
            return plain.spelled_rope(self.draw, x, cos, sin, interleaved=c.interleaved)
        return rope(x, cos, sin, interleaved=c.interleaved)

    def acted(self, x: Value) -> Value:
        act = self.shape.act
        if self.shape.spelling:
            return plain.ACTIVATIONS[act](self.draw, x)
        return LIBRARY[act](x)

    def gated(self, gate: Value, up: Value) -> Value:
        if self.shape.spelling:
            return plain.spelled_gate(self.draw, gate, up, self.shape.act)
        return self.acted(gate) * up


class DecoderLayer(Layer):
    """A decoder layer of some Shape."""

    signature = ("x[batch, tokens, hidden], positions[batch, tokens]:i32"
                 " -> y[batch, tokens, hidden]")

    def __init__(self, config: Shape) -> None:
        self.config = c = config
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.norms = [[Param(c.hidden), Param(c.hidden)] for _ in range(2 + 2 * c.sandwich)]
        self.head_norms = [Param(c.head_dim), Param(c.head_dim)] if c.head_norms else []
        sizes = [q + 2 * kv] if c.fused else [q, kv, kv]
        if c.fused:
            self.wqkv = self.weight(sizes[0], c.hidden)
        else:
            self.wq, self.wk, self.wv = (self.weight(size, c.hidden) for size in sizes)
        self.biases = [Param(size) for size in sizes] if c.bias else []
        self.wo = self.weight(c.hidden, q)
        self.out_bias = [Param(c.hidden)] if c.bias and c.spelling % 2 else []
        if c.experts:
            self.experts = [Param(EXPERTS, c.hidden), Param(EXPERTS, c.ffn, c.hidden),
                            Param(EXPERTS, c.hidden, c.ffn)]
        else:
            both = c.fused and c.gated
            self.up = self.weight(2 * c.ffn if both else c.ffn, c.hidden)
            self.down = self.weight(c.hidden, c.ffn)
            self.gate = [self.weight(c.ffn, c.hidden)] if c.gated and not c.fused else []
        self.kv = KVCache(c.kv_heads, c.head_dim)

    def weight(self, rows: int, columns: int) -> Value:
        return Param(columns, rows) if self.config.turned_weights else Param(rows, columns)

    def heads(self, s: Spelling, h: Value) -> list[Value]:
        """q, k and v [batch, tokens, heads, head_dim]."""
        c, (b, t, _) = self.config, h.shape
        counts = (c.heads, c.kv_heads, c.kv_heads)
        weights = [self.wqkv] if c.fused else [self.wq, self.wk, self.wv]
        biases = self.biases or [None] * len(weights)
        made = [s.linear(h, w, bias) for w, bias in zip(weights, biases, strict=True)]
        if c.fused:
            made = list(split(made[0], sizes=tuple(n * c.head_dim for n in counts), axis=-1))
        return [reshape(x, shape=(b, t, n, c.head_dim))
                for x, n in zip(made, counts, strict=True)]

    def attend(self, s: Spelling, h: Value, positions: Value, tables: tuple[Value, ...]) -> Value:
        c, (b, t, _) = self.config, h.shape
        q, k, v = self.heads(s, h)
        if self.head_norms:
            q, k = (plain.spelled_rms_norm(s.draw, x, w, c.eps, one_plus=c.one_plus)
                    for x, w in zip((q, k), self.head_norms, strict=True))
        if c.angles and not tables:
            tables = rope_angles(positions, rotary_dim=2 * c.angles, theta=c.theta)
        if tables:
            q, k = (s.rope(x, *tables) for x in (q, k))
        kv = self.kv.append(k, v, positions)
        attend = partial(plain.cached_attention, s.draw) if c.plain_attention else attention
        out = attend(q, kv.k, kv.v, positions, window=c.window, softcap=c.softcap, scale=c.scale)
        return s.linear(reshape(out, shape=(b, t, c.heads * c.head_dim)), self.wo,
                        *self.out_bias)

    def feed(self, s: Spelling, h: Value) -> Value:
        c = self.config
        if c.experts:
            return self.feed_experts(s, h)
        if not c.gated:
            return s.linear(s.acted(s.linear(h, self.up)), self.down)
        if c.fused:
            gate, up = split(s.linear(h, self.up), sizes=(c.ffn, c.ffn), axis=-1)
        else:
            gate, up = s.linear(h, self.gate[0]), s.linear(h, self.up)
        return s.linear(s.gated(gate, up), self.down)

    def feed_experts(self, s: Spelling, h: Value) -> Value:
        """Two experts for every token, weighted by how well they suit it."""
        b, t, d = h.shape
        router, up, down = self.experts
        weights, chosen = topk(softmax(linear(h, router)), k=2)
        weights = weights / reduce_sum(weights)
        each = expand(reshape(h, shape=(b, t, 1, d)), shape=(b, t, 2, d))
        inner = s.acted(expert_linear(each, up, chosen))
        made = expert_linear(inner, down, chosen) * weights[..., None]
        return made[:, :, 0] + made[:, :, 1]

    def forward(self, x: Value, positions: Value) -> Value:
        return self.decoded(x, positions)

    def decoded(self, x: Value, positions: Value, *tables: Value) -> Value:
        s = Spelling(self.config)
        attended = self.attend(s, s.norm(x, *self.norms[0]), positions, tables)
        if self.config.sandwich:
            attended = s.norm(attended, *self.norms[2])
        middle = x if self.config.parallel else x + attended
        fed = self.feed(s, s.norm(middle, *self.norms[1]))
        if self.config.sandwich:
            fed = s.norm(fed, *self.norms[3])
        return x + attended + fed if self.config.parallel else middle + fed


class TableLayer(DecoderLayer):
    """A decoder layer that is given the rope tables."""

    signature = ("x[batch, tokens, hidden], positions[batch, tokens]:i32,"
                 " cos[batch, tokens, angles]:f32, sin[batch, tokens, angles]:f32"
                 " -> y[batch, tokens, hidden]")

    def forward(self, x: Value, positions: Value, cos: Value, sin: Value) -> Value:
        return self.decoded(x, positions, cos, sin)


def layer_of(shape: Shape) -> DecoderLayer:
    """The Layer of a Shape."""
    return (TableLayer if shape.given_angles and shape.angles else DecoderLayer)(shape)


@dataclass(frozen=True)
class ModelShape:
    """The Layers of a random Model, first to last."""

    layers: tuple[Shape, ...]
    vocab: int
    learned: bool = False
    softcap: float = 0.0

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
        self.places = [Param(40, config.hidden)] if config.learned else []
        self.layers = [layer_of(shape) for shape in config.layers]
        self.norm = Param(config.hidden)

    def forward(self, ids: Value, positions: Value) -> Value:
        x = embedding(ids, self.table)
        for table in self.places:
            x = x + embedding(maximum(positions, 0), table)
        tables: dict[tuple[int, float], tuple[Value, ...]] = {}
        for layer in self.layers:
            c, given = layer.config, ()
            if isinstance(layer, TableLayer):
                base = (c.angles, c.theta)
                if base not in tables:
                    tables[base] = rope_angles(positions, rotary_dim=2 * c.angles, theta=c.theta)
                given = tables[base]
            x = layer(x, positions, *given)
        logits = linear(rms_norm(x, self.norm, eps=1e-5), self.table)
        return tanh(logits / 3.0) * 3.0 if self.config.softcap else logits


def random_layer(seed: int, dtype: str = "f32") -> Graph:
    """A decoder layer of random sizes and variants."""
    return trace(layer_of(random_shape(random.Random(seed))), dtype)


def random_model(seed: int, dtype: str = "f32") -> Graph:
    """A Model of one to five Layers: all equal, alternating windows and rope bases, or one that
    differs."""
    draw = random.Random(seed)
    shape = random_shape(draw)
    count = draw.randint(1, 5)
    layers = [shape] * count
    kind = draw.randrange(3)
    if kind == 1:
        layers = [replace(shape, window=(i % 2) * 3, theta=(1e4, 1e6)[i % 2])
                  for i in range(count)]
    if kind == 2:
        layers[draw.randrange(count)] = replace(shape, eps=1e-3)
    return trace(DecoderModel(ModelShape(tuple(layers), draw.choice([11, 19]),
                                         learned=draw.random() < 0.2,
                                         softcap=draw.choice([0.0, 0.0, 3.0]))), dtype)
