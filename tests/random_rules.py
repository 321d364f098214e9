"""A step of a soup that writes down what a rule looks for, so that every rule finds its work."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from random_soup import Soup, Step
from random_spelled import whole

from graphdsl.errors import GraphError
from graphdsl.ir import DTYPES, FLOATS, Size, TensorType, Value, terms
from graphdsl.ops.linear import linear
from graphdsl.ops.math import abs, cast, reduce_max, tanh
from graphdsl.ops.search import argmax
from graphdsl.ops.shape import reshape, transpose
from graphdsl.passes.rules import Rule
from graphdsl.signature import Term, parse_terms

ROOTS = {"sqrt", "rsqrt", "pow", "log"}


class Example(Rule, Protocol):
    """A rule that says what it looks for."""

    shapes: ClassVar[str]
    attributes: ClassVar[Mapping[str, Sequence[Any]]]
    before: Callable[..., Any]


def example_of(rule: Example) -> Step:
    """The step that applies `before` of a rule to values of a soup; where they do not fit, an
    ordinary value is returned."""
    def step(s: Soup) -> Value:
        known, caches = len(s.params), dict(s.state)
        attrs = {name: s.draw.choice(list(values)) for name, values in rule.attributes.items()}
        try:
            results = [_full(s, v) for v in _made(rule, _operands(s, rule), attrs)]
        except GraphError:
            del s.params[known:]
            s.state = caches
            return s.any()
        _keep_state(s, results)
        first, *others = results
        s.full += others
        if s.draw.random() < 0.15:
            s.full += _inner(s, first)
        return first

    return step


def _made(rule: Example, operands: list[Value], attrs: dict[str, Any]) -> tuple[Value, ...]:
    """What `before` makes; of positive operands where it takes roots of some."""
    made = rule.before(*operands, **attrs)
    results = made if isinstance(made, tuple) else (made,)
    todo, names = [v.node for v in results if v.node], set()
    known = {v.node for v in operands}
    while todo:
        node = todo.pop()
        if node not in known:
            known.add(node)
            names.add(node.name)
            todo += [v.node for v in node.inputs if v.node]
    if names.isdisjoint(ROOTS):
        return results
    positive = [abs(v) + 0.5 if v.dtype in FLOATS and v.node else v for v in operands]
    made = rule.before(*positive, **attrs)
    return made if isinstance(made, tuple) else (made,)


def _operands(s: Soup, rule: Example) -> list[Value]:
    b, t = s.x.shape[:2]
    sizes: dict[str, tuple[Size, ...]] = {"*b": (b, t), "b": (b,), "t": (t,), "s": (t,)}
    params = getattr(rule, "params", ())
    return [_operand(s, term, sizes, term.name in params) for term in parse_terms(rule.shapes)]


def _operand(s: Soup, term: Term, sizes: dict[str, tuple[Size, ...]], is_param: bool) -> Value:
    """A value of the type that a term asks for, or a weight."""
    shape: tuple[Size, ...] = ()
    for dim in term.dims:
        drawn = (s.draw.choice([s.width, s.width, s.width // 2, 4]),)
        shape += (int(dim),) if dim.isdigit() else sizes.setdefault(dim, drawn)
    dtype = term.dtype if term.dtype in DTYPES else s.dtype
    fixed = tuple(size for size in shape if isinstance(size, int))
    if "cache" in term.name:
        return s.cache(*shape)
    if dtype == "i32" and shape == s.x.shape[:2]:
        return s.positions if "position" in term.name else argmax(s.any())
    if len(fixed) == len(shape) < 4 and dtype in FLOATS:
        return s.param(*fixed, dtype=dtype)
    if is_param or shape[:2] != s.x.shape[:2] or len(fixed) != len(shape) - 2:
        return s.input(f"{term.name}{len(s.inputs)}", dtype, *shape)
    return _fitted(s, TensorType(shape, dtype))


def _fitted(s: Soup, kind: TensorType) -> Value:
    """Some value as [batch, tokens, ...] of this type."""
    x, size = s.any(), math.prod(n for n in kind.shape if isinstance(n, int))
    if size != s.width or s.draw.random() < 0.3:
        x = linear(x, s.param(size, s.width))
    y: Value = reshape(x, shape=kind.shape) if x.shape != kind.shape else x
    if kind.dtype == "bool":
        return y > -1.0
    return y if kind.dtype == y.dtype else cast(y, dtype=kind.dtype)


def _full(s: Soup, y: Value) -> Value:
    """What a rule's `before` has made, as [batch, tokens, width] of the soup's dtype."""
    if y.dtype not in FLOATS:
        y = cast(y, dtype="f32")
    if y.dtype != s.dtype:
        y = cast(y, dtype=s.dtype)
    # A view of this would be made one with the views that the rule looks for.
    y = tanh(y)
    b, t = s.x.shape[:2]
    while y.shape and terms(y.shape[-1]) and len(y.shape) > 2:
        y = reduce_max(y)
    if [size for size in y.shape if terms(size)] != [b, t]:
        return s.any() + _number(y) if not any(map(terms, y.shape)) else _lonely(s, y)
    order = [y.shape.index(b), y.shape.index(t)]
    order += [i for i in range(len(y.shape)) if i not in order]
    if order != sorted(order):
        y = transpose(y, order=tuple(order))
    return whole(s, y if len(y.shape) > 2 else reshape(y, shape=(b, t, 1)))


def _number(y: Value) -> Value:
    """One number of a value of known size."""
    flat: Value = reshape(y, shape=(math.prod(n for n in y.shape if isinstance(n, int)),))
    return tanh(flat[0:1])


def _lonely(s: Soup, y: Value) -> Value:
    """A value that is not per token: the largest of its first row is added to every token."""
    row = y
    while len(row.shape) > 1:
        row = row[0]
    return s.any() + tanh(reduce_max(row))


def _keep_state(s: Soup, results: list[Value]) -> None:
    """The new value of every cache that the results were made with."""
    todo = [v.node for v in results if v.node]
    seen = set()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        todo += [v.node for v in node.inputs if v.node]
        for output, source in node.op.aliases:
            if s.state.get(node.inputs[source]) is node.inputs[source]:
                s.state[node.inputs[source]] = node.outputs[output]


def _inner(s: Soup, y: Value) -> list[Value]:
    """A value on the way to y that has the shape of the soup's values."""
    found: list[Value] = []
    todo: list[Any] = [y.node]
    while todo and len(found) < 12:
        node = todo.pop()
        if node is not None:
            found += [v for v in node.inputs if v.type == s.x.type and v.node]
            todo += [v.node for v in node.inputs]
    return [s.draw.choice(found)] if found else []
