"""Rules for positions: rope recognised from slices and concats, and rope with the KV cache.

The tables of a rope written as maths are broadcast to x: [b, t, 1, r] beside x[b, t, h, d], or
[b, 1, t, r] beside x[b, h, t, d], which is turned before and after.
"""

from __future__ import annotations

from typing import Any

from graphdsl.ir import Size, Value
from graphdsl.ops.attention import attention
from graphdsl.ops.kv import kv_append, rope_append
from graphdsl.ops.math import as_dtype, cast
from graphdsl.ops.position import rope
from graphdsl.ops.shape import concat, expand, repeat_interleave, reshape, slice, transpose
from graphdsl.passes.match import Match
from graphdsl.passes.rules import FusionRule, Rule

Shape = tuple[Size, ...]
HEADS_FIRST = (0, 2, 1, 3)


def _tokens_axis(x: Shape, table: Shape) -> int:
    """The axis of x, of shape [b, t, h, d] or [b, h, t, d], along which a table changes; 0 if it
    is no table of one row a token."""
    b, first, second, r = (1,) * (4 - len(table)) + table[:4]
    if len(x) != 4 or len(table) > 4 or b not in (1, x[0]) or r == 1:
        return 0
    if (first, second) == (x[1], 1):
        return 1
    return 2 if (first, second) == (1, x[2]) else 0


def _require_tables(m: Match, x: Shape, *, width: Size | None = None) -> None:
    """Refuses tables that rope does not take: they are one row a token, of half the `width`."""
    for name in ("cos", "sin"):
        table = m.bound[name]
        m.require(_tokens_axis(x, table.shape) > 0,
                  f"{name} is {table.type}, wanted one row a token, [batch, tokens, 1, r] or "
                  "[batch, 1, tokens, r]", table)
        m.require(isinstance(table.shape[-1], int) and width in (None, 2 * table.shape[-1]),
                  f"{name} is {table.type}, wanted half of the {width} channels that are turned",
                  table)
    m.require(m.cos.shape == m.sin.shape, f"cos is {m.cos.type}, sin is {m.sin.type}", m.sin)


def _roped(x: Value, cos: Value, sin: Value, *, interleaved: bool = False) -> Value:
    """rope of x with tables that are broadcast to it."""
    tokens = _tokens_axis(x.shape, cos.shape)
    heads_last = x if tokens == 1 else transpose(x, order=HEADS_FIRST)
    tables = [_table(t, (x.shape[0], x.shape[tokens], t.shape[-1])) for t in (cos, sin)]
    y: Value = rope(heads_last, *tables, interleaved=interleaved)
    return y if tokens == 1 else transpose(y, order=HEADS_FIRST)


def _table(value: Value, shape: Shape) -> Value:
    """A table as rope takes it, f32 [b, t, r]: what was reshaped, or rounded to the dtype of x, is
    taken before that."""
    source = value
    while source.node and (source.shape, source.dtype) != (shape, "f32") and (
            source.node.op is reshape or (source.node.op is cast
                                          and source.node.inputs[0].dtype == "f32")):
        source = source.node.inputs[0]
    if source.shape != shape:
        rows = (value.shape[0] if len(value.shape) == 4 else 1, *shape[1:])
        source = expand(reshape(value, shape=rows), shape=shape)
    return as_dtype(source, "f32")


class RotateHalf(FusionRule):
    """x * cos + (-second half, first half) * sin, with tables that hold every angle twice, turns
    the halves of x."""

    quiet = 3
    shapes = "x[b, t, 4, 6], cos[b, t, 1, 3], sin[b, t, 1, 3]"
    attributes = {"r": (3,)}  # noqa: RUF012  # never changed

    @staticmethod
    def before(x: Value, cos: Value, sin: Value, *, r: int) -> Any:
        first, second = (slice(x, axis=3, start=at, size=r) for at in (0, r))
        cosines, sines = concat(cos, cos, axis=3), concat(sin, sin, axis=3)
        return x * cosines + concat(-second, first, axis=3) * sines, cosines, sines

    @staticmethod
    def after(x: Value, cos: Value, sin: Value, *, r: int) -> Any:
        return _roped(x, cos, sin), concat(cos, cos, axis=3), concat(sin, sin, axis=3)

    def when(self, m: Match) -> None:
        _require_tables(m, m.x.shape, width=m.x.shape[-1])


class RotatePartHalf(FusionRule):
    """The same for the first channels of x."""

    quiet = 3
    shapes = "x[b, t, 4, 8], cos[b, t, 1, 3], sin[b, t, 1, 3]"
    attributes = {"r": (3,), "width": (6,)}  # noqa: RUF012  # never changed

    @staticmethod
    def before(x: Value, cos: Value, sin: Value, *, r: int, width: int) -> Any:
        first, second = (slice(x, axis=3, start=at, size=r) for at in (0, r))
        cosines, sines = concat(cos, cos, axis=3), concat(sin, sin, axis=3)
        turned = concat(-second, first, axis=3) * sines
        return slice(x, axis=3, start=0, size=width) * cosines + turned, cosines, sines

    @staticmethod
    def after(x: Value, cos: Value, sin: Value, *, r: int, width: int) -> Any:
        part = slice(x, axis=3, start=0, size=width)
        return _roped(part, cos, sin), concat(cos, cos, axis=3), concat(sin, sin, axis=3)

    def when(self, m: Match) -> None:
        _require_tables(m, m.x.shape, width=m.width)


class TurnedHalves(FusionRule):
    """(a * cos - b * sin, b * cos + a * sin) for the halves a and b of x turns them."""

    quiet = 2
    shapes = "x[b, t, 4, 6], cos[b, t, 1, 3], sin[b, t, 1, 3]"
    attributes = {"r": (3,)}  # noqa: RUF012  # never changed

    @staticmethod
    def before(x: Value, cos: Value, sin: Value, *, r: int) -> Any:
        a, b = (slice(x, axis=3, start=at, size=r) for at in (0, r))
        return concat(a * cos - b * sin, b * cos + a * sin, axis=3)

    @staticmethod
    def after(x: Value, cos: Value, sin: Value, *, r: int) -> Any:
        return _roped(x, cos, sin)

    def when(self, m: Match) -> None:
        _require_tables(m, m.x.shape, width=m.x.shape[-1])


class TurnedPart(FusionRule):
    """The same where the rest of x passes through."""

    quiet = 2
    shapes = "x[b, t, 4, 8], cos[b, t, 1, 3], sin[b, t, 1, 3]"
    attributes = {"r": (3,), "start": (6,), "size": (2,)}  # noqa: RUF012  # never changed

    @staticmethod
    def before(x: Value, cos: Value, sin: Value, *, r: int, start: int, size: int) -> Any:
        a, b = (slice(x, axis=3, start=at, size=r) for at in (0, r))
        rest = slice(x, axis=3, start=start, size=size)
        return concat(a * cos - b * sin, b * cos + a * sin, rest, axis=3)

    @staticmethod
    def after(x: Value, cos: Value, sin: Value, *, r: int, start: int, size: int) -> Any:
        return _roped(x, cos, sin)

    def when(self, m: Match) -> None:
        _require_tables(m, m.x.shape, width=m.start)


class TurnedPairs(FusionRule):
    """The same for channels 2i and 2i + 1, taken from x by a reshape to pairs."""

    quiet = 3
    shapes = "x[2, 5, 4, 6], cos[2, 5, 1, 3], sin[2, 5, 1, 3]"
    attributes = {"pairs": ((2, 5, 4, 3, 2),), "half": ((2, 5, 4, 3),),  # noqa: RUF012
                  "column": ((2, 5, 4, 3, 1),), "whole": ((2, 5, 4, 6),)}

    @staticmethod
    def before(x: Value, cos: Value, sin: Value, *, pairs: Shape, half: Shape, column: Shape,
               whole: Shape) -> Any:
        two = reshape(x, shape=pairs)
        a, b = (reshape(slice(two, axis=4, start=at, size=1), shape=half) for at in (0, 1))
        turned = (reshape(y, shape=column) for y in (a * cos - b * sin, b * cos + a * sin))
        return reshape(concat(*turned, axis=4), shape=whole)

    @staticmethod
    def after(x: Value, cos: Value, sin: Value, *, whole: Shape, **_: Shape) -> Any:
        return _roped(_shaped(x, whole), cos, sin, interleaved=True)

    def when(self, m: Match) -> None:
        _require_pairs(m)
        m.require((m.half, m.column) == (m.pairs[:4], (*m.pairs[:4], 1)),
                  "what is turned does not go back to its pairs", m.x)
        _require_tables(m, m.whole, width=m.whole[-1])


def _shaped(x: Value, shape: Shape) -> Value:
    """x in this shape."""
    if x.shape == shape:
        return x
    made: Value = reshape(x, shape=shape)
    return made


def _require_pairs(m: Match) -> None:
    """Refuses reshapes that do not cut the channels of a head in pairs."""
    m.require(len(m.pairs) == 5 and m.pairs[4] == 2 and m.whole[:-1] == m.pairs[:3],
              f"x is cut to ({', '.join(map(str, m.pairs))}), wanted [.., heads, r, 2]", m.x)


class TurnedColumns(FusionRule):
    """The same where the pairs stay columns of a last axis of 2."""

    quiet = 3
    shapes = "x[2, 5, 4, 6], cos[2, 5, 1, 3, 1], sin[2, 5, 1, 3, 1]"
    attributes = {"pairs": ((2, 5, 4, 3, 2),), "whole": ((2, 5, 4, 6),)}  # noqa: RUF012

    @staticmethod
    def before(x: Value, cos: Value, sin: Value, *, pairs: Shape, whole: Shape) -> Any:
        two = reshape(x, shape=pairs)
        a, b = (slice(two, axis=4, start=at, size=1) for at in (0, 1))
        return reshape(concat(a * cos - b * sin, b * cos + a * sin, axis=4), shape=whole)

    @staticmethod
    def after(x: Value, cos: Value, sin: Value, *, pairs: Shape, whole: Shape) -> Any:
        tables = [reshape(table, shape=table.shape[:-1]) for table in (cos, sin)]
        return _roped(_shaped(x, whole), *tables, interleaved=True)

    def when(self, m: Match) -> None:
        _require_pairs(m)
        flat = m.cos.shape[:-1]
        m.require(m.cos.shape[-1:] == (1,) and _tokens_axis(m.whole, flat) > 0
                  and m.cos.shape == m.sin.shape and 2 * flat[-1] == m.whole[-1],
                  f"cos is {m.cos.type}, wanted one row a token", m.cos)


class RotatePairs(FusionRule):
    """x * cos + (-x[1], x[0], -x[3], x[2] ...) * sin, with tables that hold every angle twice side
    by side, turns the pairs of x."""

    quiet = 3
    shapes = "x[2, 5, 4, 6], cos[2, 5, 1, 3], sin[2, 5, 1, 3]"
    attributes = {"pairs": ((2, 5, 4, 3, 2),), "whole": ((2, 5, 4, 6),)}  # noqa: RUF012

    @staticmethod
    def before(x: Value, cos: Value, sin: Value, *, pairs: Shape, whole: Shape) -> Any:
        two = reshape(x, shape=pairs)
        a, b = (slice(two, axis=4, start=at, size=1) for at in (0, 1))
        turned = reshape(concat(-b, a, axis=4), shape=whole)
        cosines, sines = (repeat_interleave(t, n=2, axis=3) for t in (cos, sin))
        return x * cosines + turned * sines, cosines, sines

    @staticmethod
    def after(x: Value, cos: Value, sin: Value, **_: Shape) -> Any:
        cosines, sines = (repeat_interleave(t, n=2, axis=3) for t in (cos, sin))
        return _roped(x, cos, sin, interleaved=True), cosines, sines

    def when(self, m: Match) -> None:
        _require_pairs(m)
        _require_tables(m, m.x.shape, width=m.x.shape[-1])


class RopedPart(FusionRule):
    """rope of the first channels beside the others is rope of all: it passes the rest through."""

    quiet = 1
    shapes = "x[b, t, 4, 8], cos[b, t, 2]:f32, sin[b, t, 2]:f32"
    attributes = {"width": (4,), "rest": (4,), "interleaved": (False, True)}  # noqa: RUF012

    @staticmethod
    def before(x: Value, cos: Value, sin: Value, *, width: int, rest: int,
               interleaved: bool) -> Any:
        part = rope(slice(x, axis=3, start=0, size=width), cos, sin, interleaved=interleaved)
        return concat(part, slice(x, axis=3, start=width, size=rest), axis=3)

    @staticmethod
    def after(x: Value, cos: Value, sin: Value, *, width: int, rest: int,
              interleaved: bool) -> Any:
        return rope(x, cos, sin, interleaved=interleaved)

    def when(self, m: Match) -> None:
        turned = 2 * m.cos.shape[-1] if isinstance(m.cos.shape[-1], int) else 0
        m.require(turned == m.width, f"rope leaves {m.width - turned} of the first {m.width} "
                  "channels as they are", m.x)


class WidenedRope(FusionRule):
    """rope in f32 of what is widened for it and rounded after it is rope: it computes in f32."""

    shapes = "x[b, t, 4, 8]:bf16, cos[b, t, 3]:f32, sin[b, t, 3]:f32"
    attributes = {"dtype": ("bf16",), "interleaved": (False, True)}  # noqa: RUF012

    @staticmethod
    def before(x: Value, cos: Value, sin: Value, *, dtype: str, interleaved: bool) -> Any:
        wide = cast(x, dtype="f32")
        return cast(rope(wide, cos, sin, interleaved=interleaved), dtype=dtype)

    @staticmethod
    def after(x: Value, cos: Value, sin: Value, *, dtype: str, interleaved: bool) -> Any:
        return rope(x, cos, sin, interleaved=interleaved)


class RopeAppend(FusionRule):
    """rope on q and k and the appends of k and v that one attention reads become one operation."""

    shapes = ("q[b, t, 4, 8], k[b, t, 2, 8], v[b, t, 2, e], cos[b, t, 3]:f32, sin[b, t, 3]:f32,"
              " positions[b, t]:i32, k_cache[b, 9, 2, 8], v_cache[b, 9, 2, e]")
    attributes = {"interleaved": (False, True), "causal": (True,),  # noqa: RUF012
                  "scale": (None, 0.3), "window": (0, 3), "softcap": (0.0,)}

    @staticmethod
    def before(q: Value, k: Value, v: Value, cos: Value, sin: Value, positions: Value,
               k_cache: Value, v_cache: Value, *, interleaved: bool, causal: bool,
               scale: float | None, window: int, softcap: float) -> Any:
        new_k = kv_append(k_cache, rope(k, cos, sin, interleaved=interleaved), positions)
        new_v = kv_append(v_cache, v, positions)
        return attention(rope(q, cos, sin, interleaved=interleaved), new_k, new_v, positions,
                         causal=causal, scale=scale, window=window, softcap=softcap), new_k, new_v

    @staticmethod
    def after(q: Value, k: Value, v: Value, cos: Value, sin: Value, positions: Value,
              k_cache: Value, v_cache: Value, *, interleaved: bool, **attrs: Any) -> Any:
        turned, new_k, new_v = rope_append(q, k, v, cos, sin, positions, k_cache, v_cache,
                                           interleaved=interleaved)
        return attention(turned, new_k, new_v, positions, **attrs), new_k, new_v


class RopeAppendMasked(FusionRule):
    """The same where the attention has a mask."""

    shapes = RopeAppend.shapes + ", mask[t, 9]:bool"
    attributes = RopeAppend.attributes

    @staticmethod
    def before(q: Value, k: Value, v: Value, cos: Value, sin: Value, positions: Value,
               k_cache: Value, v_cache: Value, mask: Value, *, interleaved: bool, causal: bool,
               scale: float | None, window: int, softcap: float) -> Any:
        new_k = kv_append(k_cache, rope(k, cos, sin, interleaved=interleaved), positions)
        new_v = kv_append(v_cache, v, positions)
        turned = rope(q, cos, sin, interleaved=interleaved)
        return attention(turned, new_k, new_v, positions, mask, causal=causal, scale=scale,
                         window=window, softcap=softcap), new_k, new_v

    @staticmethod
    def after(q: Value, k: Value, v: Value, cos: Value, sin: Value, positions: Value,
              k_cache: Value, v_cache: Value, mask: Value, *, interleaved: bool,
              **attrs: Any) -> Any:
        turned, new_k, new_v = rope_append(q, k, v, cos, sin, positions, k_cache, v_cache,
                                           interleaved=interleaved)
        return attention(turned, new_k, new_v, positions, mask, **attrs), new_k, new_v


RULES: tuple[Rule, ...] = (
    RotateHalf(), RotatePartHalf(), TurnedHalves(), TurnedPart(), TurnedPairs(), TurnedColumns(),
    RotatePairs(), RopedPart(), WidenedRope(), RopeAppend(), RopeAppendMasked())
