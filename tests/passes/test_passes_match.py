"""What a pattern matches, and what the engine reports."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from passcase import assert_same, graph_of, leaf, names, self_check

from graphdsl.ir import Dim, Graph, Value
from graphdsl.ops.math import cos, exp, maximum, reduce_max, reduce_sum, sin, sub, tanh
from graphdsl.ops.norm import add_rms_norm, rms_norm
from graphdsl.ops.shape import reshape
from graphdsl.passes.engine import apply_rules
from graphdsl.passes.rules import FusionRule
from graphdsl.printer import text

TOKENS = Dim("tokens")
A, B, C = (leaf(n, TOKENS, 4) for n in "abc")


class Factor(FusionRule):
    """a * b + a * c is a * (b + c)."""

    shapes = "a[*b, d], b[*b, d], c[*b, d]"

    @staticmethod
    def before(a: Value, b: Value, c: Value) -> Any:
        return a * b + a * c

    @staticmethod
    def after(a: Value, b: Value, c: Value) -> Any:
        return a * (b + c)


class Square(FusionRule):
    """x * x - 1 is (x - 1) * (x + 1)."""

    shapes = "x[*b]"

    @staticmethod
    def before(x: Value) -> Any:
        return sub(x * x, 1.0)

    @staticmethod
    def after(x: Value) -> Any:
        return (x - 1.0) * (x + 1.0)


class SameEps(FusionRule):
    """Two norms of one eps."""

    shapes = "x[*b, d], w[d], v[d]"
    attributes = {"eps": (1e-5, 1e-3)}  # noqa: RUF012

    @staticmethod
    def before(x: Value, w: Value, v: Value, *, eps: float) -> Any:
        return rms_norm(rms_norm(x, w, eps=eps), v, eps=eps)

    @staticmethod
    def after(x: Value, w: Value, v: Value, *, eps: float) -> Any:
        return tanh(rms_norm(tanh(rms_norm(x, w, eps=eps)), v, eps=eps))


class Undo(FusionRule):
    """The norm of a sum whose sum nobody reads: of an op with several results."""

    shapes = "x[*b, d], r[*b, d], w[d]"
    attributes = {"eps": (1e-5,)}  # noqa: RUF012

    @staticmethod
    def before(x: Value, r: Value, w: Value, *, eps: float) -> Any:
        normed, total = add_rms_norm(x, r, w, eps=eps)
        return exp(normed), total

    @staticmethod
    def after(x: Value, r: Value, w: Value, *, eps: float) -> Any:
        return exp(rms_norm(x + r, w, eps=eps)), x + r


@pytest.mark.parametrize("rule", [Factor(), Square(), Undo()], ids=lambda r: r.name)
def test_pattern_features(rule: Any) -> None:
    self_check(rule, 0)


@pytest.mark.parametrize("order", list(itertools.product([0, 1], repeat=3)))
def test_every_order_of_operands(order: tuple[int, int, int]) -> None:
    def product(x: Value, y: Value, swap: int) -> Value:
        return y * x if swap else x * y

    first, second = product(A, B, order[0]), product(A, C, order[1])
    graph = graph_of(second + first if order[2] else first + second)
    after, fired, _ = apply_rules(graph, [Factor()])
    assert [f.rule for f in fired] == ["Factor"]
    assert sorted(names(after)) == ["add", "mul"]
    assert_same(graph, after)


def test_an_operand_is_one_value() -> None:
    assert not apply_rules(graph_of(A * B + C * C), [Factor()])[1]
    assert not apply_rules(graph_of(sub(A * B, 1.0)), [Square()])[1]


def test_a_number_is_that_number() -> None:
    assert apply_rules(graph_of(sub(A * A, 1.0)), [Square()])[1]
    assert not apply_rules(graph_of(sub(A * A, 2.0)), [Square()])[1]


def test_an_attribute_is_one_value() -> None:
    w, v = leaf("w", 4, kind="param"), leaf("v", 4, kind="param")
    inner = rms_norm(A, w, eps=1e-5)
    _, fired, missed = apply_rules(graph_of(rms_norm(inner, v, eps=1e-3)), [SameEps()])
    assert not fired
    assert [m.reason for m in missed] == [
        "an operand is the input a, wanted one made by rms_norm",
        "eps of rms_norm is 1e-05, wanted 0.001"]


def test_all_results_are_replaced() -> None:
    w = leaf("w", 4, kind="param")
    normed, total = add_rms_norm(A, B, w, eps=1e-5)
    graph = graph_of(exp(normed), total * 2.0)
    after, fired, _ = apply_rules(graph, [Undo()])
    assert fired
    assert "add_rms_norm" not in names(after)
    assert_same(graph, after)


def test_made_nodes_carry_line_scope_and_rules() -> None:
    graph = graph_of(A * B + A * C)
    after, fired, _ = apply_rules(graph, [Factor()])
    root = graph.outputs[0].node
    assert root is not None
    for node in after.nodes:
        assert node.loc == root.loc == fired[0].loc
        assert node.origin == ("Factor",)


def test_nothing_to_do_returns_the_same_graph() -> None:
    graph = graph_of(tanh(A) + sin(B))
    assert apply_rules(graph, [Factor(), Square()])[0] is graph


def test_a_rule_fires_wherever_it_can() -> None:
    """What one rewrite makes is looked at again, with its users and siblings."""
    x = A
    for _ in range(5):
        x = x * B + x * C
    graph = graph_of(x, cos(x))
    before = text(graph)
    after, fired, _ = apply_rules(graph, [Factor()])
    assert len(fired) == 5
    assert text(graph) == before
    assert_same(graph, after)


def test_a_dead_end_frees_what_it_read() -> None:
    """Once max(x, x) is x, the other user of the inner value is gone and Factor can fire."""
    class Same(FusionRule):
        shapes = "x[*b]"

        @staticmethod
        def before(x: Value, y: Value) -> Any:
            return maximum(x, x) - y

        @staticmethod
        def after(x: Value, y: Value) -> Any:
            return tanh(x)

    product = A * B
    graph: Graph = graph_of(maximum(C, C) - (product + 1.0), product + A * C)
    after, fired, _ = apply_rules(graph, [Same(), Factor()])
    assert [f.rule for f in fired] == ["Same", "Factor"]
    assert names(after) == ["tanh", "add", "mul"]


def test_loops_hold_one_space() -> None:
    """A row's scalar joins its reduction; another width is another loop."""
    from passcase import CPU

    from graphdsl.passes.loops import loop_space
    from graphdsl.passes.pipeline import run_pipeline

    row = reduce_sum(A) * 0.5 + reduce_max(B)
    wide = leaf("wide", TOKENS, 6)
    graph = graph_of(A - row, wide * row, tanh(reshape(C, shape=(TOKENS, 2, 2))))
    lowered = run_pipeline(graph, CPU, verify=True)
    bodies = [n.body for n in lowered.graph.nodes if n.name == "loop"]
    assert [loop_space(b) for b in bodies if b] == [(TOKENS, 4), (TOKENS, 6), (TOKENS, 2, 2)]


class Shifted(FusionRule):
    """(x + c) * c is x * c + c * c, for any number c."""

    shapes = "x[*b]"
    attributes = {"c": (0.5, -2.0)}  # noqa: RUF012

    @staticmethod
    def before(x: Value, *, c: float) -> Any:
        return (x + c) * c

    @staticmethod
    def after(x: Value, *, c: float) -> Any:
        return x * c + c * c


def test_an_attribute_may_be_a_number() -> None:
    for seed in range(3):
        self_check(Shifted(), seed)


@pytest.mark.parametrize(("graph", "reason"), [
    (lambda: graph_of((A + 2.0) * 3.0), "c is 3.0, wanted 2.0"),
    (lambda: graph_of((A + B) * 3.0), "c is b, wanted a number")])
def test_numbers_that_differ(graph: Any, reason: str) -> None:
    made = graph()
    after, fired, missed = apply_rules(made, [Shifted()])
    assert after is made or text(after) == text(made)
    assert not fired
    assert [m.reason for m in missed] == [reason]
