"""What sums and products come to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from passcase import graph_of, leaf

from graphdsl.ir import Dim, Value
from graphdsl.ops.math import erf, exp, tanh
from graphdsl.passes import activation
from graphdsl.passes.engine import apply_rules
from graphdsl.passes.overlay import Overlay
from graphdsl.passes.polynomial import MOST, Polynomial, Terms, is_close, monomial

TOKENS = Dim("tokens")
X, Y = leaf("x", TOKENS, 8), leaf("y", TOKENS, 8)


def terms_of(value: Value, *others: Value) -> tuple[Terms, int]:
    """The terms of a value of a graph that may have other outputs, and how many nodes they took."""
    found = Polynomial(Overlay(graph_of(value, *others)))
    return found.of(value), len(found.nodes)


X1, X2, Y1, XY = (monomial((X, 1)), monomial((X, 2)), monomial((Y, 1)),
                  monomial((X, 1), (Y, 1)))

CASES: dict[str, tuple[Callable[[], Value], Terms]] = {
    "a leaf": (lambda: X, {X1: 1.0}),
    "a sum": (lambda: X + 2.0 * Y, {X1: 1.0, Y1: 2.0}),
    "a difference": (lambda: 1.0 - X, {monomial(): 1.0, X1: -1.0}),
    "a product of sums": (lambda: (X + 1.0) * (X + Y), {X2: 1.0, X1: 1.0, XY: 1.0, Y1: 1.0}),
    "a quotient by a number": (lambda: -(X * X) / 4.0, {X2: -0.25}),
    "terms that add up": (lambda: 0.5 * X + X / 2.0, {X1: 1.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_terms(case: str) -> None:
    make, wanted = CASES[case]
    assert is_close(terms_of(make())[0], wanted)


def test_what_is_not_looked_into() -> None:
    """Quotients by values, other ops, and what something else reads as well."""
    for value in (X / Y, exp(X), tanh(X * 2.0)):
        assert terms_of(value) == ({monomial((value, 1)): 1.0}, 0)
    by_zero = X / 0.0
    assert terms_of(by_zero) == ({monomial((by_zero, 1)): 1.0}, 0)
    twice = X * 2.0
    assert terms_of(twice + Y, exp(twice))[0] == {monomial((twice, 1)): 1.0, Y1: 1.0}


def test_products_of_many_sums_end() -> None:
    value = X
    for i in range(60):
        value = (value + float(i)) * (erf(Y) + float(i))
    found, nodes = terms_of(value)
    assert nodes <= MOST
    assert len(found) < 1000
    assert not apply_rules(graph_of(value), activation.RULES)[1]


def test_numbers_to_ten_digits() -> None:
    assert is_close({X1: 1.0}, {X1: 1.0 + 1e-11})
    assert not is_close({X1: 1.0}, {X1: 1.0 + 1e-9})
    assert not is_close({X1: 1.0}, {X1: 1.0, Y1: 0.0})
