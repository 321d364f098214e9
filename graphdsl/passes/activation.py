"""Rules for activations: what is written as maths becomes an Operation, and with a product a gated
one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from graphdsl.ir import FLOATS, Node, Value
from graphdsl.op import Op
from graphdsl.ops.activation import (
    geglu,
    geglu_tanh,
    gelu,
    gelu_tanh,
    relu,
    sigmoid,
    silu,
    swiglu,
)
from graphdsl.ops.math import (
    add,
    cast,
    div,
    erf,
    exp,
    less,
    less_equal,
    maximum,
    mul,
    tanh,
    where,
)
from graphdsl.passes.match import Match, NoMatch
from graphdsl.passes.overlay import Overlay
from graphdsl.passes.polynomial import MOST, Polynomial, Terms, is_close, monomial
from graphdsl.passes.rules import Candidate, FusionRule, Rule


class Sigmoid(FusionRule):
    """1 / (1 + e^-x) is sigmoid."""

    shapes = "x[*b, d]"

    @staticmethod
    def before(x: Value) -> Any:
        return 1.0 / (exp(-x) + 1.0)

    @staticmethod
    def after(x: Value) -> Any:
        return sigmoid(x)


class Silu(FusionRule):
    """x * sigmoid(x) is silu."""

    shapes = Sigmoid.shapes

    @staticmethod
    def before(x: Value) -> Any:
        return sigmoid(x) * x

    @staticmethod
    def after(x: Value) -> Any:
        return silu(x)


class SiluOfQuotient(FusionRule):
    """x / (1 + e^-x) is silu."""

    shapes = Sigmoid.shapes

    @staticmethod
    def before(x: Value) -> Any:
        return x / (exp(-x) + 1.0)

    @staticmethod
    def after(x: Value) -> Any:
        return silu(x)


class Relu(FusionRule):
    """max(x, 0) is relu."""

    shapes = Sigmoid.shapes

    @staticmethod
    def before(x: Value) -> Any:
        return maximum(x, 0.0)

    @staticmethod
    def after(x: Value) -> Any:
        return relu(x)

    def when(self, m: Match) -> None:
        m.is_meant(m.x.dtype in FLOATS)


class ReluOfLess(FusionRule):
    """0 where x < 0, else x, is relu: both are nan where x is."""

    shapes = Sigmoid.shapes

    @staticmethod
    def before(x: Value) -> Any:
        return where(less(x, 0.0), 0.0, x)

    @staticmethod
    def after(x: Value) -> Any:
        return relu(x)


class ReluOfLessEqual(FusionRule):
    """0 where x <= 0, else x, is relu."""

    shapes = Sigmoid.shapes

    @staticmethod
    def before(x: Value) -> Any:
        return where(less_equal(x, 0.0), 0.0, x)

    @staticmethod
    def after(x: Value) -> Any:
        return relu(x)


class _GeluRule(FusionRule):
    """x * (1 + f(p)) / 2, where f is erf or tanh and p a polynomial in x, in any spelling."""

    shapes = Sigmoid.shapes
    function: ClassVar[Op]
    argument: ClassVar[Mapping[int, float]]
    """The factors of p, by the power of x."""

    @property
    def roots(self) -> tuple[Op, ...]:
        return (mul, add, div)

    @property
    def depth(self) -> int:
        return MOST

    @cached_property
    def needs(self) -> frozenset[Op]:
        return frozenset([self.function])

    def find(self, overlay: Overlay, node: Node) -> Candidate:
        whole, inner = Polynomial(overlay), Polynomial(overlay)
        x, curve = self._parts(whole.of(node.outputs[0]))
        assert curve.node is not None
        found = inner.of(overlay.inputs(curve.node)[0])
        if not is_close(found, {monomial((x, n)): k for n, k in self.argument.items()}):
            raise NoMatch(f"the argument of {self.function} is not that of gelu", curve, 2)
        nodes = (*whole.nodes, curve.node, *inner.nodes)
        try:
            for each in nodes:
                if each is not node:
                    overlay.check_inner(each.outputs[0], nodes)
        except NoMatch as failure:
            raise NoMatch(failure.reason, failure.at, len(nodes)) from None
        return Candidate(node.outputs, nodes, lambda: self.after(x))

    def _parts(self, terms: Terms) -> tuple[Value, Value]:
        """x and f(p)."""
        alone = [v for m in terms if len(m) == 1 for v, _ in m]
        others = {v for m in terms for v, _ in m}.difference(alone)
        if len(alone) != 1 or len(others) != 1:
            raise NoMatch("it is something else")
        x, curve = alone[0], others.pop()
        if curve.node is None or curve.node.op is not self.function:
            raise NoMatch("it is something else")
        if not is_close(terms, {monomial((x, 1)): 0.5, monomial((x, 1), (curve, 1)): 0.5}):
            raise NoMatch(f"it is not x * (1 + {self.function}) / 2", curve, 2)
        return x, curve


class Gelu(_GeluRule):
    """x * (1 + erf(x / sqrt(2))) / 2 is gelu."""

    function = erf
    argument = {1: math.sqrt(0.5)}  # noqa: RUF012  # never changed

    @staticmethod
    def before(x: Value) -> Any:
        return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))

    @staticmethod
    def after(x: Value) -> Any:
        return gelu(x)


class GeluTanh(_GeluRule):
    """x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) / 2 is gelu_tanh."""

    function = tanh
    argument = {1: math.sqrt(2.0 / math.pi),  # noqa: RUF012
                3: math.sqrt(2.0 / math.pi) * 0.044715}

    @staticmethod
    def before(x: Value) -> Any:
        inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))
        return 0.5 * x * (1.0 + tanh(inner))

    @staticmethod
    def after(x: Value) -> Any:
        return gelu_tanh(x)


class _OfCast(FusionRule):
    """An activation in f32 of what was 16-bit, rounded at the end."""

    shapes = "x[*b, d]:bf16"
    attributes = {"dtype": ("bf16",)}  # noqa: RUF012
    op: ClassVar[Op]

    @classmethod
    def before(cls, x: Value, *, dtype: str) -> Any:
        return cast(cls.op(cast(x, dtype="f32")), dtype=dtype)

    @classmethod
    def after(cls, x: Value, *, dtype: str) -> Any:
        return cls.op(x)


class SigmoidOfCast(_OfCast):
    """sigmoid in f32, rounded at the end, is sigmoid of what was cast."""

    op = sigmoid


class SiluOfCast(_OfCast):
    """silu in f32, rounded at the end, is silu of what was cast."""

    op = silu


class GeluOfCast(_OfCast):
    """gelu in f32, rounded at the end, is gelu of what was cast."""

    op = gelu


class GeluTanhOfCast(_OfCast):
    """gelu_tanh in f32, rounded at the end, is gelu_tanh of what was cast."""

    op = gelu_tanh


class ReluOfCast(_OfCast):
    """relu in f32, rounded at the end, is relu of what was cast."""

    op = relu


class SiluMul(FusionRule):
    """silu(gate) * up is swiglu."""

    shapes = "gate[*b, d], up[*b, d]"

    @staticmethod
    def before(gate: Value, up: Value) -> Any:
        return silu(gate) * up

    @staticmethod
    def after(gate: Value, up: Value) -> Any:
        return swiglu(gate, up)


class GeluMul(FusionRule):
    """gelu(gate) * up is geglu."""

    shapes = SiluMul.shapes

    @staticmethod
    def before(gate: Value, up: Value) -> Any:
        return gelu(gate) * up

    @staticmethod
    def after(gate: Value, up: Value) -> Any:
        return geglu(gate, up)


class GeluTanhMul(FusionRule):
    """gelu_tanh(gate) * up is geglu_tanh."""

    shapes = SiluMul.shapes

    @staticmethod
    def before(gate: Value, up: Value) -> Any:
        return gelu_tanh(gate) * up

    @staticmethod
    def after(gate: Value, up: Value) -> Any:
        return geglu_tanh(gate, up)


RULES: tuple[Rule, ...] = (
    Sigmoid(), Silu(), SiluOfQuotient(), Relu(), ReluOfLess(), ReluOfLessEqual(), Gelu(),
    GeluTanh(), SigmoidOfCast(), SiluOfCast(), GeluOfCast(), GeluTanhOfCast(), ReluOfCast(),
    SiluMul(), GeluMul(), GeluTanhMul())
