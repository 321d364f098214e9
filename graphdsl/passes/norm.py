"""Rules for norms: what is written as maths becomes an Operation, and an add that feeds
a norm becomes a part of it.

The steps are small, and each leads to the next: a sum over n is a mean, x / sqrt(v) is
x * rsqrt(v), a row by that and by a weight is rms_norm, which of x - mean(x) is layer_norm.
"""

from __future__ import annotations

import math
from typing import Any

from graphdsl.ir import Value
from graphdsl.ops.math import cast, mean, reduce_sum, rsqrt, sqrt
from graphdsl.ops.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from graphdsl.passes.match import Match
from graphdsl.passes.rules import FusionRule, Rule

EPS = {"eps": (1e-5, 1e-3)}


class MeanOfSum(FusionRule):
    """The sum of a row over its length is the mean."""

    shapes = "x[*b, 8]"
    attributes = {"n": (8.0,)}  # noqa: RUF012  # never changed

    @staticmethod
    def before(x: Value, *, n: float) -> Any:
        return reduce_sum(x) / n

    @staticmethod
    def after(x: Value, *, n: float) -> Any:
        return mean(x)

    def when(self, m: Match) -> None:
        length = m.x.shape[-1]
        m.require(m.n == length, f"{m.n} is not the length of a row, which is {length}", m.x)


class MeanOfScaledSum(FusionRule):
    """The sum of a row times one over its length is the mean."""

    shapes = "x[*b, 8]"
    attributes = {"factor": (0.125,)}  # noqa: RUF012

    @staticmethod
    def before(x: Value, *, factor: float) -> Any:
        return reduce_sum(x) * factor

    @staticmethod
    def after(x: Value, *, factor: float) -> Any:
        return mean(x)

    def when(self, m: Match) -> None:
        length = m.x.shape[-1]
        m.require(isinstance(m.factor, float) and isinstance(length, int)
                  and math.isclose(m.factor * length, 1.0, rel_tol=1e-12),
                  f"{m.factor} is not one over the length of a row, which is {length}", m.x)


class ReciprocalRoot(FusionRule):
    """1 / sqrt(v) is rsqrt(v)."""

    shapes = "x[*b, d]"

    @staticmethod
    def before(x: Value) -> Any:
        return 1.0 / sqrt(x)

    @staticmethod
    def after(x: Value) -> Any:
        return rsqrt(x)


class QuotientByRoot(FusionRule):
    """A row over the square root of its scalar is the row times its rsqrt."""

    shapes = "x[*b, d], v[*b, 1]"

    @staticmethod
    def before(x: Value, v: Value) -> Any:
        return x / sqrt(v)

    @staticmethod
    def after(x: Value, v: Value) -> Any:
        return x * rsqrt(v)

    def when(self, m: Match) -> None:
        m.require(m.v.shape[-1:] == (1,) and m.x.shape[-1:] != (1,),
                  "the root is not one number for a row", m.v)


class RootFirst(FusionRule):
    """(x * w) * rsqrt(v) is (x * rsqrt(v)) * w: a row is normalised before it is weighted."""

    shapes = "x[*b, d], w[d], v[*b, 1]"

    @staticmethod
    def before(x: Value, w: Value, v: Value) -> Any:
        return rsqrt(v) * (x * w)

    @staticmethod
    def after(x: Value, w: Value, v: Value) -> Any:
        return x * rsqrt(v) * w

    def when(self, m: Match) -> None:
        _is_weighted_row(m)


class RootOfWeight(FusionRule):
    """x * (w * rsqrt(v)) is (x * rsqrt(v)) * w."""

    shapes = RootFirst.shapes

    @staticmethod
    def before(x: Value, w: Value, v: Value) -> Any:
        return (rsqrt(v) * w) * x

    @staticmethod
    def after(x: Value, w: Value, v: Value) -> Any:
        return x * rsqrt(v) * w

    def when(self, m: Match) -> None:
        _is_weighted_row(m)


def _is_weighted_row(m: Match) -> None:
    m.require(m.v.shape[-1:] == (1,) and len(m.w.shape) == 1 and len(m.x.shape) > 1,
              "it is no row with a weight", m.w)


def _normalised(x: Any, eps: Any) -> Any:
    return rsqrt(mean(x * x) + eps) * x


class RMSNorm(FusionRule):
    """x * rsqrt(mean(x^2) + eps) * w is rms_norm."""

    shapes = "x[*b, d], w[d]"
    attributes = EPS

    @staticmethod
    def before(x: Value, w: Value, *, eps: float) -> Any:
        return _normalised(x, eps) * w

    @staticmethod
    def after(x: Value, w: Value, *, eps: float) -> Any:
        return rms_norm(x, w, eps=eps)


class RMSNormRounded(FusionRule):
    """A row that is normalised in f32, rounded and then weighted, as Llama has it, is rms_norm."""

    shapes = "x[*b, d]:bf16, w[d]:bf16"
    attributes = EPS | {"dtype": ("bf16",)}

    @staticmethod
    def before(x: Value, w: Value, *, eps: float, dtype: str) -> Any:
        return cast(_normalised(cast(x, dtype="f32"), eps), dtype=dtype) * w

    @staticmethod
    def after(x: Value, w: Value, *, eps: float, dtype: str) -> Any:
        return rms_norm(x, w, eps=eps)


class RMSNormByRoundedRoot(FusionRule):
    """x * rsqrt(mean(x^2) + eps) * w with the root alone in f32 is rms_norm."""

    shapes = RMSNormRounded.shapes
    attributes = RMSNormRounded.attributes

    @staticmethod
    def before(x: Value, w: Value, *, eps: float, dtype: str) -> Any:
        h = cast(x, dtype="f32")
        return cast(rsqrt(mean(h * h) + eps), dtype=dtype) * x * w

    @staticmethod
    def after(x: Value, w: Value, *, eps: float, dtype: str) -> Any:
        return rms_norm(x, w, eps=eps)


class RMSNormOfCast(FusionRule):
    """rms_norm of a 16-bit x in f32, rounded at the end, is rms_norm by a weight in f32."""

    shapes = "x[*b, d]:bf16, w[d]:f32"
    attributes = RMSNormRounded.attributes

    @staticmethod
    def before(x: Value, w: Value, *, eps: float, dtype: str) -> Any:
        return cast(rms_norm(cast(x, dtype="f32"), w, eps=eps), dtype=dtype)

    @staticmethod
    def after(x: Value, w: Value, *, eps: float, dtype: str) -> Any:
        return rms_norm(x, w, eps=eps)


class AddRMSNorm(FusionRule):
    """x + r feeding rms_norm becomes one operation; the sum stays available to its other users."""

    shapes = "x[*b, d], r[*b, d], w[d]"
    attributes = EPS

    @staticmethod
    def before(x: Value, r: Value, w: Value, *, eps: float) -> Any:
        total = x + r
        return rms_norm(total, w, eps=eps), total

    @staticmethod
    def after(x: Value, r: Value, w: Value, *, eps: float) -> Any:
        return add_rms_norm(x, r, w, eps=eps)


class LayerNorm(FusionRule):
    """rms_norm of a row that is centred on its mean is layer_norm."""

    shapes = "x[*b, d], w[d]"
    attributes = EPS

    @staticmethod
    def before(x: Value, w: Value, *, eps: float) -> Any:
        return rms_norm(x - mean(x), w, eps=eps)

    @staticmethod
    def after(x: Value, w: Value, *, eps: float) -> Any:
        return layer_norm(x, w, eps=eps)


class LayerNormOfMoments(FusionRule):
    """A centred and weighted row over a root of mean(x^2) - mean(x)^2 + eps is layer_norm, whose
    variance loses nothing where the mean is large."""

    shapes = LayerNorm.shapes
    attributes = EPS

    @staticmethod
    def before(x: Value, w: Value, *, eps: float) -> Any:
        centre = mean(x)
        return rsqrt(mean(x * x) - centre * centre + eps) * (x - centre) * w

    @staticmethod
    def after(x: Value, w: Value, *, eps: float) -> Any:
        return layer_norm(x, w, eps=eps)


class LayerNormRounded(FusionRule):
    """A row that is centred and normalised in f32, rounded and then weighted is layer_norm."""

    shapes = RMSNormRounded.shapes
    attributes = RMSNormRounded.attributes

    @staticmethod
    def before(x: Value, w: Value, *, eps: float, dtype: str) -> Any:
        h = cast(x, dtype="f32")
        return cast(_normalised(h - mean(h), eps), dtype=dtype) * w

    @staticmethod
    def after(x: Value, w: Value, *, eps: float, dtype: str) -> Any:
        return layer_norm(x, w, eps=eps)


class LayerNormBias(FusionRule):
    """layer_norm + b is layer_norm with a bias."""

    shapes = "x[*b, d], w[d], b[d]"
    attributes = EPS

    @staticmethod
    def before(x: Value, w: Value, b: Value, *, eps: float) -> Any:
        return layer_norm(x, w, eps=eps) + b

    @staticmethod
    def after(x: Value, w: Value, b: Value, *, eps: float) -> Any:
        return layer_norm(x, w, b, eps=eps)

    def when(self, m: Match) -> None:
        m.is_meant(len(m.b.shape) == 1)


class LayerNormOfCast(FusionRule):
    """layer_norm in f32 of what was 16-bit, rounded at the end, is layer_norm of that."""

    shapes = "x[*b, d]:bf16, w[d]:bf16"
    attributes = RMSNormRounded.attributes

    @staticmethod
    def before(x: Value, w: Value, *, eps: float, dtype: str) -> Any:
        h, weight = cast(x, dtype="f32"), cast(w, dtype="f32")
        return cast(layer_norm(h, weight, eps=eps), dtype=dtype)

    @staticmethod
    def after(x: Value, w: Value, *, eps: float, dtype: str) -> Any:
        return layer_norm(x, w, eps=eps)


class LayerNormBiasOfCast(FusionRule):
    """layer_norm with a bias, in f32 of what was 16-bit and rounded, is layer_norm of that."""

    shapes = "x[*b, d]:bf16, w[d]:bf16, b[d]:bf16"
    attributes = RMSNormRounded.attributes

    @staticmethod
    def before(x: Value, w: Value, b: Value, *, eps: float, dtype: str) -> Any:
        h, weight, bias = (cast(v, dtype="f32") for v in (x, w, b))
        return cast(layer_norm(h, weight, bias, eps=eps), dtype=dtype)

    @staticmethod
    def after(x: Value, w: Value, b: Value, *, eps: float, dtype: str) -> Any:
        return layer_norm(x, w, b, eps=eps)


class AddLayerNorm(FusionRule):
    """x + r feeding layer_norm becomes one operation; the sum stays available."""

    shapes = AddRMSNorm.shapes
    attributes = EPS

    @staticmethod
    def before(x: Value, r: Value, w: Value, *, eps: float) -> Any:
        total = x + r
        return layer_norm(total, w, eps=eps), total

    @staticmethod
    def after(x: Value, r: Value, w: Value, *, eps: float) -> Any:
        return add_layer_norm(x, r, w, eps=eps)


class AddLayerNormBias(FusionRule):
    """x + r feeding layer_norm with a bias becomes one operation; the sum stays available."""

    shapes = "x[*b, d], r[*b, d], w[d], b[d]"
    attributes = EPS

    @staticmethod
    def before(x: Value, r: Value, w: Value, b: Value, *, eps: float) -> Any:
        total = x + r
        return layer_norm(total, w, b, eps=eps), total

    @staticmethod
    def after(x: Value, r: Value, w: Value, b: Value, *, eps: float) -> Any:
        return add_layer_norm(x, r, w, b, eps=eps)


class BiasOfAddLayerNorm(FusionRule):
    """add_layer_norm + b is add_layer_norm with a bias."""

    shapes = AddLayerNormBias.shapes
    attributes = EPS

    @staticmethod
    def before(x: Value, r: Value, w: Value, b: Value, *, eps: float) -> Any:
        normed, total = add_layer_norm(x, r, w, eps=eps)
        return normed + b, total

    @staticmethod
    def after(x: Value, r: Value, w: Value, b: Value, *, eps: float) -> Any:
        return add_layer_norm(x, r, w, b, eps=eps)

    def when(self, m: Match) -> None:
        m.is_meant(len(m.b.shape) == 1)


RULES: tuple[Rule, ...] = (
    MeanOfSum(), MeanOfScaledSum(), ReciprocalRoot(), QuotientByRoot(), RootFirst(),
    RootOfWeight(), RMSNorm(), RMSNormRounded(), RMSNormByRoundedRoot(), RMSNormOfCast(),
    LayerNorm(), LayerNormOfMoments(), LayerNormRounded(), LayerNormBias(), LayerNormOfCast(),
    LayerNormBiasOfCast(), AddRMSNorm(), AddLayerNorm(), AddLayerNormBias(),
    BiasOfAddLayerNorm())
