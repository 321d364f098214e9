"""A value as a polynomial: what sums and products of the same few values come to, whatever the
order in which they are written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from graphdsl.ir import Node, Value
from graphdsl.op import constant
from graphdsl.ops.math import add, div, mul, neg, sub
from graphdsl.passes.overlay import Overlay

Monomial = frozenset[tuple[Value, int]]
"""A product of values with their powers; the empty one is 1."""

Terms = dict[Monomial, float]

MOST = 12
"""Nodes that one polynomial may take: the activations need 5, and products of sums grow."""


def monomial(*powers: tuple[Value, int]) -> Monomial:
    return frozenset(powers)


@dataclass
class Polynomial:
    """A value in terms of those that it is computed from. Sums and products that something else
    reads as well are not looked into."""

    overlay: Overlay
    nodes: dict[Node, None] = field(default_factory=dict)

    def of(self, value: Value, is_root: bool = True) -> Terms:
        """The terms of `value`."""
        node = value.node
        if node is None:
            return {monomial((value, 1)): 1.0}
        if node.op is constant and isinstance(node.attr["value"], float):
            return {monomial(): node.attr["value"]}
        inner = is_root or len(self.overlay.users(value)) == 1
        if not inner or node.op not in (add, sub, mul, neg, div) or len(self.nodes) >= MOST:
            return {monomial((value, 1)): 1.0}
        return self._arithmetic(node, value)

    def _arithmetic(self, node: Node, value: Value) -> Terms:
        inputs = self.overlay.inputs(node)
        if node.op is div and not _number(inputs[1]):
            return {monomial((value, 1)): 1.0}
        self.nodes[node] = None
        x, *rest = (self.of(v, is_root=False) for v in inputs)
        if node.op is neg:
            return _scaled(x, -1.0)
        if node.op is div:
            return _scaled(x, 1.0 / rest[0][monomial()])
        if node.op is mul:
            return _product(x, rest[0])
        return _sum(x, rest[0] if node.op is add else _scaled(rest[0], -1.0))


def _number(value: Value) -> bool:
    """Whether a value is a number that one can divide by."""
    if value.node is None or value.node.op is not constant:
        return False
    number = value.node.attr["value"]
    return isinstance(number, float) and number != 0.0


def _scaled(x: Terms, factor: float) -> Terms:
    return {m: factor * k for m, k in x.items()}


def _sum(x: Terms, y: Terms) -> Terms:
    return {m: x.get(m, 0.0) + y.get(m, 0.0) for m in x.keys() | y.keys()}


def _product(x: Terms, y: Terms) -> Terms:
    terms: Terms = {}
    for a, i in x.items():
        for b, j in y.items():
            powers = dict(a)
            for value, power in b:
                powers[value] = powers.get(value, 0) + power
            both = monomial(*powers.items())
            terms[both] = terms.get(both, 0.0) + i * j
    return terms


def is_close(found: Mapping[Monomial, float], wanted: Mapping[Monomial, float]) -> bool:
    """Whether two polynomials are the same to ten digits: less would show in f64."""
    return found.keys() == wanted.keys() and all(
        math.isclose(k, wanted[m], rel_tol=1e-10) for m, k in found.items())
