"""Norms, activations, rope and attention written as plain maths, in one of many spellings.

Every function takes the values of the Operation of the same name and draws how it is written.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from graphdsl.ir import Value
from graphdsl.ops.activation import geglu, gelu, gelu_tanh, relu, sigmoid, silu, swiglu
from graphdsl.ops.linear import linear, matmul, matmul_nt
from graphdsl.ops.math import (
    as_dtype,
    cast,
    erf,
    exp,
    logical_and,
    mean,
    neg,
    pow,
    reduce_max,
    reduce_sum,
    rsqrt,
    sqrt,
    tanh,
    where,
)
from graphdsl.ops.norm import layer_norm, rms_norm, softmax
from graphdsl.ops.position import rope
from graphdsl.ops.shape import arange, concat, expand, repeat_interleave, reshape, transpose

Draw = random.Random


def squared(draw: Draw, x: Value) -> Value:
    """x^2."""
    return draw.choice([lambda: x * x, lambda: pow(x, 2.0)])()


def averaged(draw: Draw, x: Value) -> Value:
    """The mean of every row."""
    width = x.shape[-1]
    assert isinstance(width, int)
    return draw.choice([lambda: mean(x), lambda: mean(x), lambda: reduce_sum(x) / width,
                        lambda: reduce_sum(x) * (1.0 / width)])()


def normalised(draw: Draw, x: Value, variance: Value, eps: float) -> Value:
    """x / sqrt(variance + eps)."""
    shifted = draw.choice([lambda: variance + eps, lambda: eps + variance])()
    return draw.choice([
        lambda: x * rsqrt(shifted), lambda: rsqrt(shifted) * x, lambda: x / sqrt(shifted),
        lambda: x * (1.0 / sqrt(shifted)), lambda: x * pow(shifted, -0.5)])()


def weighted(draw: Draw, x: Value, weight: Value) -> Value:
    """x * weight."""
    return draw.choice([lambda: x * weight, lambda: weight * x])()


def spelled_rms_norm(draw: Draw, x: Value, weight: Value, eps: float, *,
                     one_plus: bool = False) -> Value:
    """rms_norm, with (1 + weight) for `one_plus`: rounded before or after the weight."""
    h = cast(x, dtype="f32") if draw.random() < 0.3 else as_dtype(x, "f32")
    if draw.random() < 0.4:
        return rms_norm(x, one_more(draw, weight) if one_plus else weight, eps=eps)
    normed = normalised(draw, h, averaged(draw, squared(draw, h)), eps)
    if one_plus:
        return as_dtype(weighted(draw, normed, one_more(draw, as_dtype(weight, "f32"))), x.dtype)
    if draw.random() < 0.6:
        return weighted(draw, as_dtype(normed, x.dtype), weight)
    return as_dtype(weighted(draw, normed, as_dtype(weight, "f32")), x.dtype)


def one_more(draw: Draw, weight: Value) -> Value:
    """1 + weight."""
    return draw.choice([lambda: weight + 1.0, lambda: 1.0 + weight])()


def spelled_layer_norm(draw: Draw, x: Value, weight: Value, bias: Value | None,
                       eps: float) -> Value:
    """layer_norm, the variance of x or of what is centred."""
    if draw.random() < 0.4:
        return layer_norm(x, weight, eps=eps) if bias is None else layer_norm(x, weight, bias,
                                                                              eps=eps)
    h = as_dtype(x, "f32")
    centred = h - averaged(draw, h)
    again = centred if draw.random() < 0.7 else h - averaged(draw, h)
    normed = normalised(draw, centred, averaged(draw, squared(draw, again)), eps)
    y = weighted(draw, normed, as_dtype(weight, "f32"))
    if bias is not None:
        shift = as_dtype(bias, "f32")
        y = draw.choice([lambda: y + shift, lambda: shift + y])()
    return as_dtype(y, x.dtype)


def spelled_softmax(draw: Draw, x: Value) -> Value:
    """softmax along the last axis."""
    if draw.random() < 0.5:
        made: Value = softmax(x)
        return made
    h = as_dtype(x, "f32")
    e = exp(h - reduce_max(h))
    y = draw.choice([lambda: e / reduce_sum(e), lambda: e * (1.0 / reduce_sum(e))])()
    return as_dtype(y, x.dtype)


def spelled_sigmoid(draw: Draw, x: Value) -> Value:
    """sigmoid, as an Operation or by e^-x."""
    return draw.choice([
        lambda: sigmoid(x), lambda: sigmoid(x), lambda: 1.0 / (1.0 + exp(-x)),
        lambda: 1.0 / (exp(neg(x)) + 1.0), lambda: 1.0 / (exp(x * -1.0) + 1.0)])()


def spelled_silu(draw: Draw, x: Value) -> Value:
    """silu, as an Operation, by sigmoid or by a quotient."""
    if draw.random() < 0.3:
        made: Value = silu(x)
        return made
    h = as_dtype(x, "f32")
    y = draw.choice([
        lambda: h * spelled_sigmoid(draw, h), lambda: spelled_sigmoid(draw, h) * h,
        lambda: h / (1.0 + exp(-h)), lambda: h / (exp(-h) + 1.0)])()
    return as_dtype(y, x.dtype)


def spelled_gelu(draw: Draw, x: Value) -> Value:
    """gelu in its erf form."""
    if draw.random() < 0.3:
        made: Value = gelu(x)
        return made
    h = as_dtype(x, "f32")
    inner = draw.choice([lambda: h / math.sqrt(2.0), lambda: h * math.sqrt(0.5),
                         lambda: h * (1.0 / math.sqrt(2.0))])()
    return as_dtype(_half(draw, h, erf(inner)), x.dtype)


def spelled_gelu_tanh(draw: Draw, x: Value) -> Value:
    """gelu in its tanh form."""
    if draw.random() < 0.3:
        made: Value = gelu_tanh(x)
        return made
    h = as_dtype(x, "f32")
    cube = draw.choice([lambda: pow(h, 3.0), lambda: h * h * h, lambda: h * (h * h)])()
    term = draw.choice([lambda: 0.044715 * cube, lambda: cube * 0.044715])()
    factor = math.sqrt(2.0 / math.pi)
    inner = draw.choice([
        lambda: factor * (h + term), lambda: (h + term) * factor,
        lambda: factor * h * (1.0 + 0.044715 * h * h)])()
    return as_dtype(_half(draw, h, tanh(inner)), x.dtype)


def _half(draw: Draw, h: Value, bent: Value) -> Value:
    """h * (1 + bent) / 2."""
    more = draw.choice([lambda: 1.0 + bent, lambda: bent + 1.0])()
    return draw.choice([
        lambda: 0.5 * h * more, lambda: h * 0.5 * more, lambda: h * more * 0.5,
        lambda: h * (more * 0.5), lambda: h * more / 2.0])()


ACTIVATIONS: dict[str, Callable[[Draw, Value], Value]] = {
    "silu": spelled_silu, "gelu": spelled_gelu, "gelu_tanh": spelled_gelu_tanh,
    "relu": lambda draw, x: relu(x), "sigmoid": spelled_sigmoid}


def spelled_gate(draw: Draw, gate: Value, up: Value, activation: str) -> Value:
    """activation(gate) * up."""
    whole: dict[str, Any] = {"silu": swiglu, "gelu": geglu}
    if activation in whole and draw.random() < 0.2:
        made: Value = whole[activation](gate, up)
        return made
    return weighted(draw, ACTIVATIONS[activation](draw, gate), up)


def spelled_linear(draw: Draw, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """linear: by matmul_nt, by matmul with the weight turned, or as one Operation."""
    if draw.random() < 0.4:
        return linear(x, weight) if bias is None else linear(x, weight, bias)
    rows, columns = weight.shape
    turned = transpose(weight, order=(1, 0))
    ways: list[Callable[[], Any]] = [
        lambda: matmul_nt(x, weight), lambda: matmul_nt(x, transpose(turned, order=(1, 0)))]
    if len(x.shape) == 3:
        each = expand(reshape(turned, shape=(1, columns, rows)),
                      shape=(x.shape[0], columns, rows))
        ways.append(lambda: matmul(x, each))
    y: Value = draw.choice(ways)()
    return y if bias is None else draw.choice([lambda: y + bias, lambda: bias + y])()


def rotated_half(x: Value, half: int) -> Value:
    """(-x2, x1) of the halves of the last axis."""
    made: Value = concat(neg(x[..., half:]), x[..., :half], axis=-1)
    return made


def spelled_rope(draw: Draw, x: Value, cos: Value, sin: Value, *, interleaved: bool) -> Value:
    """rope of x[b, t, h, d] by tables [b, t, r]: by rotate_half, by halves, or as one Operation."""
    r, d = cos.shape[-1], x.shape[-1]
    assert isinstance(r, int)
    assert isinstance(d, int)
    if draw.random() < 0.3:
        return rope(x, cos, sin, interleaved=interleaved)
    if interleaved:
        return _paired_rope(draw, x, cos, sin)
    h = as_dtype(x, "f32")
    turning = h[..., :2 * r]
    c, s = cos[:, :, None], sin[:, :, None]

    def by_halves() -> Value:
        a, b = turning[..., :r], turning[..., r:]
        made: Value = concat(a * c - b * s, b * c + a * s, axis=-1)
        return made

    def by_rotation() -> Value:
        both = [concat(t, t, axis=-1) for t in (cos, sin)]
        wide_c, wide_s = (t[:, :, None] for t in both)
        made: Value = turning * wide_c + rotated_half(turning, r) * wide_s
        return made

    turned = draw.choice([by_halves, by_rotation])()
    whole = turned if 2 * r == d else concat(turned, h[..., 2 * r:], axis=-1)
    return as_dtype(whole, x.dtype)


def _paired_rope(draw: Draw, x: Value, cos: Value, sin: Value) -> Value:
    """rope of channels 2i and 2i + 1: by pairs, by columns, or by a rotation of the whole."""
    h, (b, t, n, d), r = as_dtype(x, "f32"), x.shape, _whole(cos.shape[-1])
    part = h[..., :2 * r] if draw.random() < 0.5 or 2 * r < _whole(d) else h
    two = reshape(part, shape=(b, t, n, r, 2))

    def by_pairs() -> Value:
        c, s, first, second = cos[:, :, None], sin[:, :, None], two[..., 0], two[..., 1]
        made: Value = concat((first * c - second * s)[..., None],
                             (second * c + first * s)[..., None], axis=4)
        return made

    def by_columns() -> Value:
        c, s = (table[:, :, None, :, None] for table in (cos, sin))
        first, second = two[..., 0:1], two[..., 1:2]
        made: Value = concat(first * c - second * s, second * c + first * s, axis=-1)
        return made

    def by_rotation() -> Value:
        c, s = (repeat_interleave(table, n=2, axis=2)[:, :, None] for table in (cos, sin))
        turned = concat(-two[..., 1:2], two[..., 0:1], axis=-1)
        made: Value = part * c + reshape(turned, shape=part.shape) * s
        return made

    turned = reshape(draw.choice([by_pairs, by_columns, by_rotation])(), shape=part.shape)
    whole = turned if 2 * r == d else concat(turned, h[..., 2 * r:], axis=-1)
    return as_dtype(whole, x.dtype)


def repeated_kv(draw: Draw, x: Value, group: int) -> Value:
    """x[b, g, s, d] with every head `group` times in a row: [b, g * group, s, d]."""
    if group == 1:
        return x
    b, g, s, d = x.shape
    assert isinstance(g, int)
    if draw.random() < 0.8:
        wide = expand(reshape(x, shape=(b, g, 1, s, d)), shape=(b, g, group, s, d))
        return reshape(wide, shape=(b, g * group, s, d))
    heads = [x[:, i // group:i // group + 1] for i in range(g * group)]
    made: Value = concat(*heads, axis=1)
    return made


def spelled_attention(draw: Draw, q: Value, k: Value, v: Value, *, scale: float | None = None,
                      softcap: float = 0.0, bias: Value | None = None,
                      seen: Callable[[Value], Value] = lambda scores: scores) -> Value:
    """Attention of q[b, t, h, d] to k and v[b, s, g, d] as a transcription of the maths; `seen`
    hides the scores [b, h, t, s] of keys that a query does not see."""
    group = _whole(q.shape[2]) // _whole(k.shape[2])
    heads, keys, values = (transpose(x, order=(0, 2, 1, 3)) for x in (q, k, v))
    keys, values = repeated_kv(draw, keys, group), repeated_kv(draw, values, group)
    factor = scale if scale is not None else _whole(q.shape[3]) ** -0.5
    turned = transpose(keys, order=(0, 1, 3, 2))
    scores = draw.choice([
        lambda: matmul(heads, turned) * factor, lambda: factor * matmul(heads, turned),
        lambda: matmul(heads * factor, turned), lambda: matmul(heads, turned) / (1.0 / factor)])()
    if softcap:
        scores = tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    weights = spelled_softmax(draw, seen(scores))
    return transpose(matmul(weights, values), order=(0, 2, 1, 3))


def _whole(size: Any) -> int:
    assert isinstance(size, int)
    return size


def seen_slots(draw: Draw, positions: Value, slots: Any, window: int) -> Value:
    """Which slots a token at positions[b, t] sees: bool [b, 1, t, slots]."""
    at, slot = reshape(positions, shape=(positions.shape[0], 1, positions.shape[1], 1)), arange(
        size=slots)
    seen: Value = draw.choice([lambda: slot <= at, lambda: at >= slot])()
    if window:
        near = draw.choice([lambda: slot > at - window, lambda: at - slot < window,
                            lambda: at - window < slot])()
        seen = logical_and(seen, near)
    return seen


def hiding(draw: Draw, seen: Value) -> Callable[[Value], Value]:
    """What takes scores of keys that are not seen away: by a choice, or by a mask that is added."""
    low = draw.choice([-1e9, -math.inf])

    def added(scores: Value) -> Value:
        mask: Value = where(seen, 0.0, low)
        return scores + as_dtype(mask, scores.dtype)

    return draw.choice([lambda scores: where(seen, scores, low), added])


def cached_attention(draw: Draw, q: Value, k: Value, v: Value, positions: Value, *, window: int,
                     softcap: float, scale: float | None) -> Value:
    """Attention of q to what is in a cache, as a transcription of the maths."""
    seen = seen_slots(draw, positions, k.shape[1], window)
    return spelled_attention(draw, q, k, v, scale=scale, softcap=softcap,
                             seen=hiding(draw, seen))
