"""Nodes that do nothing, undo one another, or have a simpler spelling of the same value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from graphdsl.ir import FLOATS, Graph, Node, Size, Value, add_sizes, scaled, upper_bound
from graphdsl.op import Op, constant_of
from graphdsl.ops.math import (
    abs,
    add,
    broadcast_shape,
    cast,
    div,
    logical_and,
    logical_not,
    logical_or,
    maximum,
    minimum,
    mul,
    neg,
    pow,
    rsqrt,
    sqrt,
    sub,
    where,
)
from graphdsl.ops.shape import concat, expand, reshape, slice, split, transpose
from graphdsl.passes.base import in_bodies
from graphdsl.passes.match import is_number
from graphdsl.passes.rewrite import substitute

Simplify = Callable[[Node, Sequence[Value]], Sequence[Value] | None]


def simplified(graph: Graph) -> Graph:
    """`graph`, and the bodies of its repeats, without nodes that do nothing."""
    graph = in_bodies(graph, simplified)
    new = _simpler(graph)
    while new:
        graph = substitute(graph, new)
        new = _simpler(graph)
    return graph


def _simpler(graph: Graph) -> dict[Value, Value]:
    """What can take the place of values."""
    new: dict[Value, Value] = {}
    for node in graph.nodes:
        rule = SIMPLER.get(node.op)
        inputs = [new.get(v, v) for v in node.inputs]
        found = rule(node, inputs) if rule else None
        if found is None and node.op.kind == "pointwise" and len(inputs) > 1:
            found = _broadcast(node, inputs)
        if found is not None and tuple(v.type.plain for v in found) == node.out_types:
            new.update(zip(node.outputs, (new.get(v, v) for v in found), strict=True))
    return new


def _broadcast(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """A vector that was given leading axes of 1, or an operand that was expanded, as the op does by
    itself."""
    for i, x in enumerate(inputs):
        view = x.node
        if view is None or view.op not in (reshape, expand):
            continue
        source = view.inputs[0]
        if view.op is reshape and x.shape != (1,) * (len(x.shape) - 1) + source.shape:
            continue
        operands = [*inputs[:i], source, *inputs[i + 1:]]
        shape = broadcast_shape([v.type for v in operands])
        if shape == node.out_types[0].shape:
            return _make(node.op, operands, node)
    return None


def _make(op: Op, inputs: Sequence[Value], like: Node, **attrs: Any) -> Sequence[Value]:
    """The results of a new node in the place of another."""
    return op.apply(tuple(inputs), attrs, like.loc, like.scope, like.origin).outputs


def _made_by(value: Value, op: Op) -> Node | None:
    return value.node if value.node is not None and value.node.op is op else None


def _sum(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """x + 0 and 0 + x; x + -y is x - y."""
    for x, y in (inputs, inputs[::-1]):
        if is_number(y, 0):
            return [x]
        negative = _made_by(y, neg)
        if negative:
            return _make(sub, (x, negative.inputs[0]), node)
    return None


def _product(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """x * 1 and 1 * x; x * -1 is -x."""
    for x, y in (inputs, inputs[::-1]):
        if is_number(y, 1):
            return [x]
        if is_number(y, -1):
            return _make(neg, [x], node)
    return None


def _difference(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """x - 0; x - -y is x + y."""
    negative = _made_by(inputs[1], neg)
    if negative:
        return _make(add, (inputs[0], negative.inputs[0]), node)
    return [inputs[0]] if is_number(inputs[1], 0) else None


def _quotient(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """x / 1."""
    return [inputs[0]] if is_number(inputs[1], 1) else None


def _power(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """x to the power of a small number, as torch has it: 2 is a product, 0.5 a square root."""
    x, y = inputs
    if is_number(y, 1):
        return [x]
    if is_number(y, 2):
        return _make(mul, (x, x), node)
    if is_number(y, 3):
        return _make(mul, (_make(mul, (x, x), node)[0], x), node)
    if is_number(y, 0.5) or is_number(y, -0.5):
        return _make(sqrt if is_number(y, 0.5) else rsqrt, [x], node)
    if is_number(y, -1):
        return _make(div, (constant_of(1.0, x.dtype, node.loc), x), node)
    return None


def _undone(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """What is done to itself again: -(-x), not not x."""
    before = _made_by(inputs[0], node.op)
    return before.inputs if before else None


def _magnitude(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """The size of a size; that of -x is that of x."""
    negative = _made_by(inputs[0], neg)
    if negative:
        return _make(abs, negative.inputs, node)
    return inputs if _made_by(inputs[0], abs) else None


def _twins(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """One of two that are the same value."""
    return [inputs[0]] if inputs[0] is inputs[1] else None


def _choice(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """x or x; the choice by `not c` is that by c the other way round."""
    condition, x, y = inputs
    opposite = _made_by(condition, logical_not)
    if x is y:
        return [x]
    return _make(where, (opposite.inputs[0], y, x), node) if opposite else None


def _cast(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """A cast to the dtype that x has; a 16-bit float that was widened only."""
    x = inputs[0]
    if x.dtype == node.attr["dtype"]:
        return [x]
    before = _made_by(x, cast)
    if before and x.dtype == "f32" and before.inputs[0].dtype in FLOATS:
        return [before.inputs[0]]
    return None


def _reshape(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """A reshape to the shape that x has, or of what was reshaped before."""
    x = inputs[0]
    before = _made_by(x, reshape)
    if x.shape == node.attr["shape"]:
        return [x]
    if before is None:
        return None
    source = before.inputs[0]
    if source.shape == node.attr["shape"]:
        return [source]
    return _make(reshape, [source], node, **node.attr)


def _transpose(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """Axes that stay, or that were moved before."""
    x, order = inputs[0], node.attr["order"]
    if list(order) == sorted(order):
        return [x]
    before = _made_by(x, transpose)
    if before is None:
        return None
    joined = tuple(before.attr["order"][i] for i in order)
    if list(joined) == sorted(joined):
        return [before.inputs[0]]
    return _make(transpose, before.inputs, node, order=joined)


def _expand(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """An expand to the shape that x has, or of what was expanded before."""
    before = _made_by(inputs[0], expand)
    if inputs[0].shape == node.attr["shape"]:
        return inputs
    return _make(expand, before.inputs, node, **node.attr) if before else None


def _slice(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """All of x; a part of a part; what lies within one operand of a concat."""
    x, start, size = inputs[0], node.attr["start"], node.attr["size"]
    axis = node.attr["axis"] % len(x.shape)
    if x.shape[axis] == size:
        return [x]
    made_by = x.node
    if made_by is None or made_by.op not in (slice, concat):
        return None
    if made_by.attr["axis"] % len(x.shape) != axis:
        return None
    if made_by.op is slice:
        start = add_sizes(made_by.attr["start"], start)
        return _make(slice, made_by.inputs, node, axis=axis, start=start, size=size)
    at: Size = 0
    for part in made_by.inputs:
        end = add_sizes(at, part.shape[axis])
        if _at_most(at, start) and _at_most(add_sizes(start, size), end):
            own = add_sizes(start, scaled(at, -1))
            return _make(slice, [part], node, axis=axis, start=own, size=size)
        at = end
    return None


def _at_most(a: Size, b: Size) -> bool:
    """Whether a <= b for all sizes that their dims can have."""
    return upper_bound(add_sizes(a, scaled(b, -1))) <= 0


def _split(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """What was put together along this axis in these pieces."""
    before, axis = _made_by(inputs[0], concat), node.attr["axis"] % len(inputs[0].shape)
    if len(node.out_types) == 1:
        return inputs
    if before is None or before.attr["axis"] % len(inputs[0].shape) != axis:
        return None
    sizes = tuple(v.shape[axis] for v in before.inputs)
    return before.inputs if sizes == node.attr["sizes"] else None


def _concat(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """One operand; operands that were put together before; pieces of one value in their order."""
    if len(inputs) == 1:
        return inputs
    axis = node.attr["axis"] % len(inputs[0].shape)
    runs: list[list[_Piece]] = []
    for piece in (_Piece.of(v, axis) for x in inputs for v in _parts(x, axis)):
        if runs and runs[-1][-1].is_before(piece):
            runs[-1].append(piece)
        else:
            runs.append([piece])
    if len(runs) == len(inputs):
        return None
    kept = [_joined(run, axis, node) for run in runs]
    return kept if len(kept) == 1 else _make(concat, kept, node, axis=axis)


def _parts(x: Value, axis: int) -> Sequence[Value]:
    """The operands of a concat along this axis, or x."""
    before = _made_by(x, concat)
    return before.inputs if before and before.attr["axis"] % len(x.shape) == axis else [x]


@dataclass(frozen=True)
class _Piece:
    """A value, and the part of another along an axis that it is."""

    value: Value
    source: Value
    start: Size
    end: Size

    def is_before(self, other: _Piece) -> bool:
        return self.source is other.source and self.end == other.start

    @staticmethod
    def of(x: Value, axis: int) -> _Piece:
        """What x is a part of; itself if no slice or split along this axis made it."""
        node, size = x.node, x.shape[axis]
        if (node is None or node.op not in (slice, split)
                or node.attr["axis"] % len(x.shape) != axis):
            return _Piece(x, x, 0, size)
        start: Size = node.attr["start"] if node.op is slice else 0
        for before in node.outputs[:x.index]:
            start = add_sizes(start, before.shape[axis])
        return _Piece(x, node.inputs[0], start, add_sizes(start, size))


def _joined(run: Sequence[_Piece], axis: int, like: Node) -> Value:
    """One value for pieces that follow each other."""
    source, start, end = run[0].source, run[0].start, run[-1].end
    if len(run) == 1:
        return run[0].value
    if start == 0 and end == source.shape[axis]:
        return source
    size = add_sizes(end, scaled(start, -1))
    return _make(slice, [source], like, axis=axis, start=start, size=size)[0]


SIMPLER: dict[Op, Simplify] = {
    add: _sum, sub: _difference, mul: _product, div: _quotient, pow: _power, neg: _undone,
    abs: _magnitude, maximum: _twins, minimum: _twins, where: _choice, logical_and: _twins,
    logical_or: _twins, logical_not: _undone, cast: _cast, reshape: _reshape,
    transpose: _transpose, expand: _expand, slice: _slice, split: _split, concat: _concat}
"""By op, what can take the place of its outputs: used if the types are equal."""
