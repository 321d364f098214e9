"""Rules for attention written as plain maths: matmul, scale, mask, softmax, matmul.

A matmul of a softmax becomes a weighted_sum, which takes up what was done to the scores from the
outside in: casts, masks, a soft cap, scales. When the product of q and k is reached, it is
`attention`. What stops on the way is opened again.
"""

from __future__ import annotations

import math
from typing import Any

from graphdsl.ir import Value
from graphdsl.op import constant_of, operation
from graphdsl.ops.attention import attention
from graphdsl.ops.linear import matmul
from graphdsl.ops.math import (
    as_dtype,
    broadcast_shape,
    cast,
    logical_and,
    logical_not,
    tanh,
    where,
)
from graphdsl.ops.norm import softmax
from graphdsl.ops.shape import reshape, transpose
from graphdsl.passes.masks import HIDDEN, check_hides
from graphdsl.passes.match import Match, is_number
from graphdsl.passes.rules import FusionRule, Rule
from graphdsl.passes.views import merged, merged_heads

HEADS_FIRST = (0, 2, 1, 3)
"""The order of axes that changes [b, t, h, d] to [b, h, t, d], and back."""


@operation("scores[*b, t, s]:S, v[*b, s, e], mask[*m]:M -> y[*b, t, e]")
def weighted_sum(scores: Value, v: Value, mask: Value, *, scale: float, softcap: float) -> Value:
    """matmul(softmax(cap(scores * scale) + mask), v): attention whose q and k are not known yet.

    mask is bool (True: seen) or is added; 0 stands for none. With a softcap c, cap(x) is
    c * tanh(x / c), else x.
    """
    x = as_dtype(scores, "f32")
    if scale != 1:
        x = x * scale
    if softcap:
        x = tanh(x / softcap) * softcap
    x = where(mask, x, HIDDEN) if mask.dtype == "bool" else x + as_dtype(mask, "f32")
    y: Value = matmul(as_dtype(softmax(x), v.dtype), v)
    return y


def _added(mask: Value, bias: Value) -> Value:
    """The mask that a bias, added to the scores before it, makes of `mask`."""
    if is_number(mask, 0):
        return bias
    bias = as_dtype(bias, "f32")
    made: Value = (where(mask, bias, HIDDEN) if mask.dtype == "bool"
                   else as_dtype(mask, "f32") + bias)
    return made


def _seen(mask: Value, seen: Value) -> Value:
    """The mask that a choice of what is seen makes of `mask`."""
    if is_number(mask, 0):
        return seen
    made: Value = (logical_and(seen, mask) if mask.dtype == "bool"
                   else where(seen, as_dtype(mask, "f32"), HIDDEN))
    return made


class Weigh(FusionRule):
    """A matmul of a softmax adds up rows by weights."""

    quiet = 1
    shapes = "scores[*b, t, s], v[*b, s, e]"

    @staticmethod
    def before(scores: Value, v: Value) -> Any:
        return matmul(softmax(scores), v)

    @staticmethod
    def after(scores: Value, v: Value) -> Any:
        return weighted_sum(scores, v, constant_of(0.0, "f32"), scale=1.0, softcap=0.0)


class WeighRounded(FusionRule):
    """The same where weights made in f32 are rounded to the dtype of v: they are kept in f32."""

    quiet = 2
    shapes = "scores[*b, t, s]:f32, v[*b, s, e]:bf16"
    attributes = {"dtype": ("bf16",)}  # noqa: RUF012  # never changed

    @staticmethod
    def before(scores: Value, v: Value, *, dtype: str) -> Any:
        return matmul(cast(softmax(scores), dtype=dtype), v)

    @staticmethod
    def after(scores: Value, v: Value, *, dtype: str) -> Any:
        return weighted_sum(scores, v, constant_of(0.0, "f32"), scale=1.0, softcap=0.0)


class Widened(FusionRule):
    """Scores that are widened to f32 are so anyway."""

    shapes = "scores[*b, t, s]:bf16, v[*b, s, e]:bf16, mask[t, s]:bool"
    attributes = {"scale": (1.0, 0.3), "softcap": (0.0, 2.0)}  # noqa: RUF012  # never changed

    @staticmethod
    def before(scores: Value, v: Value, mask: Value, *, scale: float, softcap: float) -> Any:
        return weighted_sum(cast(scores, dtype="f32"), v, mask, scale=scale, softcap=softcap)

    @staticmethod
    def after(scores: Value, v: Value, mask: Value, *, scale: float, softcap: float) -> Any:
        return weighted_sum(scores, v, mask, scale=scale, softcap=softcap)


class Biased(FusionRule):
    """What is added to the scores, a causal mask or a bias, is a mask."""

    shapes = "scores[*b, t, s], v[*b, s, e], mask[t, s]:f32, bias[t, s]"

    @staticmethod
    def before(scores: Value, v: Value, mask: Value, bias: Value) -> Any:
        return weighted_sum(scores + bias, v, mask, scale=1.0, softcap=0.0)

    @staticmethod
    def after(scores: Value, v: Value, mask: Value, bias: Value) -> Any:
        return weighted_sum(scores, v, _added(mask, bias), scale=1.0, softcap=0.0)

    def when(self, m: Match) -> None:
        m.require(broadcast_shape((m.scores.type, m.bias.type)) == m.scores.shape,
                  "the scores are broadcast", m.scores)
        m.require(_is_product(m.scores) or not _is_product(m.bias),
                  "the other operand is the product of q and k", m.bias)


def _is_product(value: Value) -> bool:
    """Whether a matmul made a value, up to what is done to every number of it."""
    node = value.node
    if node is not None and node.op.kind == "pointwise":
        return any(map(_is_product, node.inputs))
    return node is not None and node.op is matmul


class Masked(FusionRule):
    """Scores that are replaced by a large negative number where a key is not seen are masked."""

    shapes = "seen[t, 40]:bool, scores[*b, t, 40], v[*b, 40, e], mask[t, 40]:bool"
    attributes = {"low": (-1e9, float("-inf"))}  # noqa: RUF012  # never changed

    @staticmethod
    def before(seen: Value, scores: Value, v: Value, mask: Value, *, low: float) -> Any:
        return weighted_sum(where(seen, scores, low), v, mask, scale=1.0, softcap=0.0)

    @staticmethod
    def after(seen: Value, scores: Value, v: Value, mask: Value, *, low: float) -> Any:
        return weighted_sum(scores, v, _seen(mask, seen), scale=1.0, softcap=0.0)

    def when(self, m: Match) -> None:
        check_hides(m, m.seen, m.low, m.scores)


class MaskedOut(FusionRule):
    """The same where the bool says what is not seen."""

    shapes = "hidden[t, 40]:bool, scores[*b, t, 40], v[*b, 40, e], mask[t, 40]:f32"
    attributes = {"low": (-1e9, float("-inf"))}  # noqa: RUF012  # never changed

    @staticmethod
    def before(hidden: Value, scores: Value, v: Value, mask: Value, *, low: float) -> Any:
        return weighted_sum(where(hidden, low, scores), v, mask, scale=1.0, softcap=0.0)

    @staticmethod
    def after(hidden: Value, scores: Value, v: Value, mask: Value, *, low: float) -> Any:
        return weighted_sum(scores, v, _seen(mask, logical_not(hidden)), scale=1.0, softcap=0.0)

    def when(self, m: Match) -> None:
        check_hides(m, m.hidden, m.low, m.scores)


class Capped(FusionRule):
    """scale * tanh(scores) caps the scores softly at the scale."""

    shapes = "scores[*b, t, s], v[*b, s, e], mask[t, s]:bool"
    attributes = {"scale": (2.0, 30.0)}  # noqa: RUF012  # never changed

    @staticmethod
    def before(scores: Value, v: Value, mask: Value, *, scale: float) -> Any:
        return weighted_sum(tanh(scores), v, mask, scale=scale, softcap=0.0)

    @staticmethod
    def after(scores: Value, v: Value, mask: Value, *, scale: float) -> Any:
        return weighted_sum(scores, v, mask, scale=scale, softcap=scale)

    def when(self, m: Match) -> None:
        m.require(0 < m.scale < math.inf, f"the cap is {m.scale}, wanted a number above 0",
                  m.scores)


def _check_scale(m: Match, at: Value) -> None:
    """Refuses sizes, 0 and what is not finite: sums of that are nan where they are written."""
    m.require(isinstance(m.factor, int | float), f"the scale is the size {m.factor}", at)
    m.require(m.factor != 0 and math.isfinite(m.factor),
              f"the scale is {m.factor}, wanted a finite number other than 0", at)


class Scaled(FusionRule):
    """Scores times a number have a scale."""

    shapes = "scores[*b, t, s], v[*b, s, e], mask[t, s]:bool"
    attributes = {"factor": (0.5,), "scale": (1.0, 0.3),  # noqa: RUF012  # never changed
                  "softcap": (0.0, 2.0)}

    @staticmethod
    def before(scores: Value, v: Value, mask: Value, *, factor: float, scale: float,
               softcap: float) -> Any:
        return weighted_sum(scores * factor, v, mask, scale=scale, softcap=softcap)

    @staticmethod
    def after(scores: Value, v: Value, mask: Value, *, factor: float, scale: float,
              softcap: float) -> Any:
        return weighted_sum(scores, v, mask, scale=scale * factor, softcap=softcap)

    def when(self, m: Match) -> None:
        _check_scale(m, m.scores)


class Divided(FusionRule):
    """Scores over a number, the root of the width of a head, have a scale."""

    shapes = Scaled.shapes
    attributes = Scaled.attributes

    @staticmethod
    def before(scores: Value, v: Value, mask: Value, *, factor: float, scale: float,
               softcap: float) -> Any:
        return weighted_sum(scores / factor, v, mask, scale=scale, softcap=softcap)

    @staticmethod
    def after(scores: Value, v: Value, mask: Value, *, factor: float, scale: float,
              softcap: float) -> Any:
        return weighted_sum(scores, v, mask, scale=scale / factor, softcap=softcap)

    def when(self, m: Match) -> None:
        _check_scale(m, m.scores)


class ScaledQueries(FusionRule):
    """Queries times a number give scores times that number."""

    shapes = "q[*b, t, d], k[*b, d, s], v[*b, s, e], mask[t, s]:bool"
    attributes = Scaled.attributes

    @staticmethod
    def before(q: Value, k: Value, v: Value, mask: Value, *, factor: float, scale: float,
               softcap: float) -> Any:
        return weighted_sum(matmul(q * factor, k), v, mask, scale=scale, softcap=softcap)

    @staticmethod
    def after(q: Value, k: Value, v: Value, mask: Value, *, factor: float, scale: float,
              softcap: float) -> Any:
        return weighted_sum(matmul(q, k) * factor, v, mask, scale=scale, softcap=softcap)

    def when(self, m: Match) -> None:
        _check_scale(m, m.q)


class DividedQueries(FusionRule):
    """Queries over a number give scores over that number."""

    shapes = ScaledQueries.shapes
    attributes = Scaled.attributes

    @staticmethod
    def before(q: Value, k: Value, v: Value, mask: Value, *, factor: float, scale: float,
               softcap: float) -> Any:
        return weighted_sum(matmul(q / factor, k), v, mask, scale=scale, softcap=softcap)

    @staticmethod
    def after(q: Value, k: Value, v: Value, mask: Value, *, factor: float, scale: float,
              softcap: float) -> Any:
        return weighted_sum(matmul(q, k) / factor, v, mask, scale=scale, softcap=softcap)

    def when(self, m: Match) -> None:
        _check_scale(m, m.q)


class ScaledKeys(FusionRule):
    """Keys times a number, turned for the product, give scores times that number."""

    shapes = "q[2, 3, t, d], k[2, 3, s, d], v[2, 3, s, e], mask[t, s]:bool"
    attributes = Scaled.attributes | {"order": ((0, 1, 3, 2),)}

    @staticmethod
    def before(q: Value, k: Value, v: Value, mask: Value, *, factor: float, scale: float,
               softcap: float, order: tuple[int, ...]) -> Any:
        keys = transpose(k * factor, order=order)
        return weighted_sum(matmul(q, keys), v, mask, scale=scale, softcap=softcap)

    @staticmethod
    def after(q: Value, k: Value, v: Value, mask: Value, *, factor: float, scale: float,
              softcap: float, order: tuple[int, ...]) -> Any:
        scores = matmul(q, transpose(k, order=order)) * factor
        return weighted_sum(scores, v, mask, scale=scale, softcap=softcap)

    def when(self, m: Match) -> None:
        _check_scale(m, m.k)


class Attend(FusionRule):
    """The weighted sum by the product of q and k, heads first, is attention."""

    shapes = "q[b, h, t, d], k[b, h, d, s], v[b, h, s, e], mask[t, s]:f32"
    attributes = {"scale": (1.0, 0.3), "softcap": (0.0, 2.0)}  # noqa: RUF012  # never changed

    @staticmethod
    def before(q: Value, k: Value, v: Value, mask: Value, *, scale: float, softcap: float) -> Any:
        return weighted_sum(matmul(q, k), v, mask, scale=scale, softcap=softcap)

    @staticmethod
    def after(q: Value, k: Value, v: Value, mask: Value, *, scale: float, softcap: float) -> Any:
        heads_last = [transpose(q, order=HEADS_FIRST), transpose(k, order=(0, 3, 1, 2)),
                      transpose(v, order=HEADS_FIRST)]
        given = None if is_number(mask, 0) else mask
        usual = isinstance(d := q.shape[-1], int) and math.isclose(scale, d ** -0.5)
        y = attention(*heads_last, mask=given, causal=False,
                      scale=None if usual else scale, softcap=softcap)
        return transpose(y, order=HEADS_FIRST)

    def when(self, m: Match) -> None:
        m.require(len(m.q.shape) == 4, f"q is {m.q.type}, wanted [batch, heads, tokens, d]", m.q)
        m.require(m.q.dtype == m.v.dtype, f"q is {m.q.type}, v is {m.v.type}", m.v)


class Grouped(FusionRule):
    """Heads in groups of an axis of their own, [batch, groups, heads, tokens, d], are heads."""

    shapes = "q[2, 2, 3, t, d], k[2, 2, 3, d, s], v[2, 2, 3, s, e], mask[t, s]:f32"
    attributes = Attend.attributes

    @staticmethod
    def before(q: Value, k: Value, v: Value, mask: Value, *, scale: float, softcap: float) -> Any:
        return weighted_sum(matmul(q, k), v, mask, scale=scale, softcap=softcap)

    @staticmethod
    def after(q: Value, k: Value, v: Value, mask: Value, *, scale: float, softcap: float) -> Any:
        wide = (1,) * (5 - len(mask.shape)) + mask.shape
        seen = mask if len(mask.shape) < 3 else merged(reshape(mask, shape=wide), 1)
        scores = matmul(merged_heads(q), merged_heads(k))
        y = weighted_sum(scores, merged_heads(v), seen, scale=scale, softcap=softcap)
        return reshape(y, shape=(*q.shape[:-1], v.shape[-1]))

    def when(self, m: Match) -> None:
        m.require(len(m.q.shape) == 5, f"q is {m.q.type}", m.q)
        groups = ((1,) * 5 + m.mask.shape)[-4:-2]
        m.require(groups in ((1, 1), m.q.shape[1:3]), f"the mask is {m.mask.type}: heads of one "
                  "group, or groups of one head, share it", m.mask)


RULES: tuple[Rule, ...] = (
    Weigh(), WeighRounded(), Widened(), Biased(), Masked(), MaskedOut(), Capped(), Scaled(),
    Divided(), ScaledQueries(), DividedQueries(), ScaledKeys(), Grouped(), Attend())
