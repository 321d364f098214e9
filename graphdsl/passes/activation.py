"""Rules for activations."""

from __future__ import annotations

from typing import Any

from graphdsl.ir import Value
from graphdsl.ops.activation import geglu, gelu, silu, swiglu
from graphdsl.passes.rules import FusionRule, Rule


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

    shapes = "gate[*b, d], up[*b, d]"

    @staticmethod
    def before(gate: Value, up: Value) -> Any:
        return gelu(gate) * up

    @staticmethod
    def after(gate: Value, up: Value) -> Any:
        return geglu(gate, up)


RULES: tuple[Rule, ...] = (SiluMul(), GeluMul())
