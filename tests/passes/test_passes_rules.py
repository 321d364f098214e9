"""Every rule proves itself on random data; a wrong one is caught."""

from __future__ import annotations

from typing import Any

import pytest
from passcase import CPU, WHOLE, self_check
from twins import twins

from graphdsl.ir import Value
from graphdsl.ops.activation import geglu, silu, swiglu
from graphdsl.ops.linear import linear
from graphdsl.ops.norm import add_rms_norm
from graphdsl.ops.shape import concat, split
from graphdsl.passes.base import CheckFailed, Target
from graphdsl.passes.catalogue import FUSIONS, groups
from graphdsl.passes.linear import MergeLinears
from graphdsl.passes.norm import AddRMSNorm
from graphdsl.passes.rules import FusionRule

RULES = [*FUSIONS, *groups(CPU), *groups(WHOLE)]
TWINS = [(rule, twin) for rule in RULES for twin in twins(rule)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{r.name}-{r.roots[0].name}")
def test_rule_proves_itself(rule: Any, seed: int) -> None:
    self_check(rule, seed)


@pytest.mark.parametrize(("rule", "twin"), TWINS,
                         ids=[f"{r.name}-{r.roots[0].name}-{t.what}" for r, t in TWINS])
def test_every_broken_twin_is_caught(rule: Any, twin: Any) -> None:
    with pytest.raises(AssertionError, match="the numbers differ"):
        self_check(twin, 0)


class WrongActivation(FusionRule):
    """Makes geglu where swiglu is meant."""

    shapes = "gate[*b, d], up[*b, d]"

    @staticmethod
    def before(gate: Value, up: Value) -> Any:
        return silu(gate) * up

    @staticmethod
    def after(gate: Value, up: Value) -> Any:
        return geglu(gate, up)


class WrongOperand(FusionRule):
    """Right only where both operands are the same."""

    shapes = "gate[*b, d], up[*b, d]"

    @staticmethod
    def before(gate: Value, up: Value) -> Any:
        return silu(gate) * up

    @staticmethod
    def after(gate: Value, up: Value) -> Any:
        return swiglu(up, gate)


class WrongSum(AddRMSNorm):
    """Forgets the residual where it returns the sum."""

    @staticmethod
    def after(x: Value, r: Value, w: Value, *, eps: float) -> Any:
        return add_rms_norm(x, r, w, eps=eps)[0], x + x


class WrongEps(AddRMSNorm):
    """Has an eps of its own."""

    @staticmethod
    def after(x: Value, r: Value, w: Value, *, eps: float) -> Any:
        normed, total = add_rms_norm(x, r, w, eps=1e-5)
        return normed, total


class Endless(FusionRule):
    """Fires on what it makes."""

    shapes = "x[*b], y[*b]"

    @staticmethod
    def before(x: Value, y: Value) -> Any:
        return x * y

    @staticmethod
    def after(x: Value, y: Value) -> Any:
        return silu(x) * y


class WrongMerge(MergeLinears):
    """Puts the weights together in another order than the results."""

    def after(self, operands: Any) -> Any:
        x, sizes = operands[0][0], tuple(o[1].shape[0] for o in operands)
        joined = [concat(*reversed(column), axis=0)
                  for column in list(zip(*operands, strict=True))[1:]]
        return split(linear(x, *joined), sizes=sizes, axis=-1)


@pytest.mark.parametrize("rule", [WrongActivation(), WrongOperand(), WrongSum(), WrongEps(),
                                  WrongMerge()], ids=lambda r: r.name)
def test_wrong_rule_is_caught(rule: Any) -> None:
    with pytest.raises(AssertionError):
        self_check(rule, 0)


def test_endless_rule_is_stopped() -> None:
    with pytest.raises(CheckFailed, match="rule Endless fires on what it makes"):
        self_check(Endless(), 0)


def test_targets_choose_when_to_merge() -> None:
    """Without epilogues of several matmuls, gate and up are merged as well."""
    assert {r.meeting for r in groups(CPU)} == {2}
    assert {r.meeting for r in groups(Target("t", epilogue_matmuls=1))} == {1}
    assert {r.meeting for r in groups(WHOLE)} == {1}
