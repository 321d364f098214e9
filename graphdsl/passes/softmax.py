"""Rules for softmax written as maths."""

from __future__ import annotations

from typing import Any

from graphdsl.ir import Value
from graphdsl.ops.math import cast, exp, reduce_max, reduce_sum
from graphdsl.ops.norm import softmax
from graphdsl.passes.rules import FusionRule, Rule


class Softmax(FusionRule):
    """e^(x - max(x)) over its sum is softmax."""

    shapes = "x[*b, d]"

    @staticmethod
    def before(x: Value) -> Any:
        e = exp(x - reduce_max(x))
        return e / reduce_sum(e)

    @staticmethod
    def after(x: Value) -> Any:
        return softmax(x)


class SoftmaxByReciprocal(FusionRule):
    """e^(x - max(x)) times one over its sum is softmax."""

    shapes = Softmax.shapes

    @staticmethod
    def before(x: Value) -> Any:
        e = exp(x - reduce_max(x))
        return (1.0 / reduce_sum(e)) * e

    @staticmethod
    def after(x: Value) -> Any:
        return softmax(x)


class SoftmaxUnshifted(FusionRule):
    """e^x over its sum is softmax, which is finite for large x too."""

    shapes = Softmax.shapes

    @staticmethod
    def before(x: Value) -> Any:
        e = exp(x)
        return e / reduce_sum(e)

    @staticmethod
    def after(x: Value) -> Any:
        return softmax(x)


class SoftmaxOfCast(FusionRule):
    """softmax in f32 of what was 16-bit, rounded at the end, is softmax of that."""

    shapes = "x[*b, d]:bf16"
    attributes = {"dtype": ("bf16",)}  # noqa: RUF012

    @staticmethod
    def before(x: Value, *, dtype: str) -> Any:
        return cast(softmax(cast(x, dtype="f32")), dtype=dtype)

    @staticmethod
    def after(x: Value, *, dtype: str) -> Any:
        return softmax(x)


RULES: tuple[Rule, ...] = (
    Softmax(), SoftmaxByReciprocal(), SoftmaxUnshifted(), SoftmaxOfCast())
