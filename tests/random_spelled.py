"""Steps of a soup that write Operations as plain maths, and ones that do nothing at all."""

from __future__ import annotations

from typing import Any

import random_plain as plain
from random_soup import Soup, Steps

from graphdsl.ir import Value
from graphdsl.ops.attention import attention
from graphdsl.ops.kv import kv_append
from graphdsl.ops.linear import linear
from graphdsl.ops.math import add, cast, neg, reduce_sum, tanh, where
from graphdsl.ops.position import rope, rope_angles
from graphdsl.ops.shape import concat, expand, reshape, slice, split, transpose

EPS = (1e-3, 1e-5)


def in_heads(s: Soup, heads: int, head_dim: int) -> Value:
    """A linear of some value, [batch, tokens, heads, head_dim]."""
    y = linear(s.any(), s.param(heads * head_dim, s.width))
    made: Value = reshape(y, shape=(*s.x.shape[:2], heads, head_dim))
    return made


def whole(s: Soup, x: Value) -> Value:
    """x[batch, tokens, ...] as a value of the soup's width."""
    size = 1
    for n in x.shape[2:]:
        assert isinstance(n, int)
        size *= n
    flat = reshape(x, shape=(*s.x.shape[:2], size))
    made: Value = flat if size == s.width else linear(flat, s.param(s.width, size))
    return made


def _normed(s: Soup) -> Value:
    """A norm of a value or a sum, which is read elsewhere too or is not."""
    x, weight, eps = s.any(), s.param(s.width), s.draw.choice(EPS)
    if s.draw.random() < 0.6:
        other = s.any()
        x = s.draw.choice([lambda: x + other, lambda: linear(other, s.param(s.width, s.width)) + x,
                           lambda: x - neg(other)])()
        s.full += [x] if s.draw.random() < 0.5 else []
    bias = s.param(s.width) if s.draw.random() < 0.6 else None
    return s.draw.choice([
        lambda: plain.spelled_rms_norm(s.draw, x, weight, eps),
        lambda: plain.spelled_rms_norm(s.draw, x, weight, eps, one_plus=True),
        lambda: plain.spelled_layer_norm(s.draw, x, weight, bias, eps)])()


def _activated(s: Soup) -> Value:
    return plain.ACTIVATIONS[s.draw.choice(list(plain.ACTIVATIONS))](s.draw, s.any())


def _gated(s: Soup) -> Value:
    """A gated product: of two linears, of the halves of one, or of two other values."""
    d, x, act = s.width, s.any(), s.draw.choice(["silu", "gelu", "gelu_tanh", "relu"])
    kind = s.draw.randrange(3)
    if kind == 0:
        gate, up = (plain.spelled_linear(s.draw, x, s.param(d, d)) for _ in range(2))
    elif kind == 1:
        gate, up = split(linear(x, s.param(2 * d, d)), sizes=(d, d), axis=-1)
    else:
        gate, up = x, s.any()
    return plain.spelled_gate(s.draw, gate, up, act)


def _linear(s: Soup) -> Value:
    """A linear with what often follows it: a bias, an activation, the residual."""
    x = s.any()
    bias = s.param(s.width) if s.draw.random() < 0.6 else None
    y = plain.spelled_linear(s.draw, x, s.param(s.width, s.width), bias)
    if s.draw.random() < 0.4:
        y = plain.ACTIVATIONS[s.draw.choice(list(plain.ACTIVATIONS))](s.draw, y)
    return s.draw.choice([lambda: y, lambda: x + y, lambda: y + s.any()])()


def _softmax(s: Soup) -> Value:
    return plain.spelled_softmax(s.draw, s.any()) * 3.0


def _turned(s: Soup) -> Value:
    """rope of q and k, which are normed or are not; with partial and interleaved pairs."""
    dim = s.draw.choice([4, 8])
    table = rope_angles(s.positions, rotary_dim=s.draw.choice([dim, dim, dim // 2]),
                        theta=s.draw.choice([1e4, 100.0]))
    interleaved, normed = s.draw.random() < 0.3, s.draw.random() < 0.4
    made = []
    for heads in s.draw.choice([(2,), (2, 1), (2, 2)]):
        x = in_heads(s, heads, dim)
        if normed:
            x = plain.spelled_rms_norm(s.draw, x, s.param(dim), 1e-5)
        made.append(whole(s, plain.spelled_rope(s.draw, x, *table, interleaved=interleaved)))
    s.full += made[1:]
    return made[0]


def _attended(s: Soup) -> Value:
    """Attention between tokens: as the Operation has it, or written out."""
    kv_heads = s.draw.choice([1, 2])
    heads, dim = kv_heads * s.draw.choice([1, 2]), s.draw.choice([3, 4])
    q = in_heads(s, heads, dim)
    k, v = in_heads(s, kv_heads, dim), in_heads(s, kv_heads, dim)
    options: dict[str, Any] = {"scale": s.draw.choice([None, 0.3]),
                               "softcap": s.draw.choice([0.0, 0.0, 2.0])}
    if s.draw.random() < 0.3:
        made = attention(q, k, v, causal=s.draw.random() < 0.5, **options)
        return whole(s, made)
    bias = None
    if s.draw.random() < 0.3:
        bias = s.input("bias", s.dtype, 1, 1, *(s.x.shape[1],) * 2)
    return whole(s, plain.spelled_attention(s.draw, q, k, v, bias=bias, seen=_hidden(s),
                                            **options))


def _hidden(s: Soup) -> Any:
    """Hides keys: those that stand later, those that an input says, or none."""
    b, t, _ = s.x.shape
    far = s.draw.choice([-1e4, -3e4])

    def earlier() -> Value:
        p = s.positions
        return reshape(p, shape=(b, 1, 1, t)) <= reshape(p, shape=(b, 1, t, 1))

    def added(scores: Value) -> Value:
        zero = cast(scores * 0.0, dtype=s.dtype)
        return scores + where(earlier(), zero, zero + far)

    return s.draw.choice([
        lambda scores: scores, lambda scores: where(earlier(), scores, far), added,
        lambda scores: where(s.input("seen", "bool", t, t), scores, far)])


def _remembered(s: Soup) -> Value:
    """Keys and values that go through a cache."""
    kv_heads = s.draw.choice([1, 2])
    heads, dim = kv_heads * s.draw.choice([1, 2]), s.draw.choice([4, 8])
    q = in_heads(s, heads, dim)
    k, v = in_heads(s, kv_heads, dim), in_heads(s, kv_heads, dim)
    interleaved = s.draw.random() < 0.3
    if s.draw.random() < 0.6:
        table = rope_angles(s.positions, rotary_dim=dim // s.draw.choice([1, 2]), theta=1e4)
        q, k = (rope(x, *table, interleaved=interleaved) for x in (q, k))
    caches = [s.cache(s.x.shape[0], 11, kv_heads, dim) for _ in range(2)]
    new = [kv_append(cache, x, s.positions) for cache, x in zip(caches, (k, v), strict=True)]
    s.state.update(zip(caches, new, strict=True))
    made = attention(q, *new, s.positions, window=s.draw.choice([0, 0, 2]),
                     softcap=s.draw.choice([0.0, 3.0]))
    # The row of a token of padding may become anything: nothing that tokens share may read it.
    kept = reshape(s.positions >= 0, shape=(*s.x.shape[:2], 1))
    found: Value = where(kept, whole(s, made), 0.0)
    return found


def _nothing(s: Soup) -> Value:
    """Nodes that do nothing, or undo one another."""
    x, (b, t, d), half = s.any(), s.x.shape, s.width // 2
    wide = "f32" if s.dtype != "f32" else s.draw.choice(["f32", "bf16"])
    return s.draw.choice([
        lambda: x * 1.0, lambda: 1.0 * x, lambda: x + 0.0, lambda: add(x, 0.0), lambda: x - 0.0,
        lambda: x / 1.0, lambda: neg(neg(x)), lambda: cast(cast(x, dtype=wide), dtype=s.dtype),
        lambda: cast(tanh(cast(x, dtype="f32")), dtype=s.dtype), lambda: cast(x, dtype=s.dtype),
        lambda: transpose(transpose(x, order=(2, 0, 1)), order=(1, 2, 0)),
        lambda: transpose(transpose(x, order=(0, 2, 1)), order=(0, 2, 1)),
        lambda: reshape(reshape(x, shape=(b, t, 2, half)), shape=(b, t, d)),
        lambda: reshape(reshape(reshape(x, shape=(b, t, d, 1)), shape=(b, 1, t, d)),
                        shape=(b, t, d)),
        lambda: concat(*split(x, sizes=(half, half), axis=-1), axis=-1),
        lambda: split(concat(x, tanh(x), axis=-1), sizes=(s.width, s.width), axis=2)[1],
        lambda: slice(concat(tanh(x), x, axis=-1), axis=2, start=s.width, size=s.width),
        lambda: expand(x, shape=x.shape), lambda: slice(x, axis=1, start=0, size=t),
        lambda: concat(x, axis=-1), lambda: split(x, sizes=(s.width,), axis=2),
        lambda: reduce_sum(reshape(x, shape=(*x.shape, 1)))[..., 0]])()


def _twice(s: Soup) -> Value:
    """The same maths twice, from other lines."""
    x, weight = s.any(), s.param(s.width)
    a = tanh(x * weight + 0.5)
    b = tanh(x * weight + 0.5)
    made: Value = a * plain.spelled_sigmoid(s.draw, b)
    return made


SPELLED: Steps = (
    (_normed, 4), (_activated, 3), (_gated, 3), (_linear, 3), (_softmax, 1), (_turned, 2),
    (_attended, 2), (_remembered, 1), (_nothing, 4), (_twice, 1))
"""What a soup of plain maths is made of, and how often."""
