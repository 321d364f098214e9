"""Nodes that do nothing, or undo one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphdsl.ir import FLOATS, Graph, Node, Value
from graphdsl.op import Op
from graphdsl.ops.math import add, cast, div, mul, sub
from graphdsl.ops.shape import concat, expand, reshape, slice, split, transpose
from graphdsl.passes.base import in_bodies
from graphdsl.passes.match import is_number
from graphdsl.passes.rewrite import substitute

Simplify = Callable[[Node, Sequence[Value]], Sequence[Value] | None]


def simplified(graph: Graph) -> Graph:
    """`graph`, and the bodies of its repeats, without nodes that do nothing."""
    graph = in_bodies(graph, simplified)
    new: dict[Value, Value] = {}
    for node in graph.nodes:
        rule = SIMPLER.get(node.op)
        if rule is None:
            continue
        found = rule(node, [new.get(v, v) for v in node.inputs])
        if found is not None and tuple(v.type for v in found) == node.out_types:
            new.update(zip(node.outputs, (new.get(v, v) for v in found), strict=True))
    return substitute(graph, new) if new else graph


def _made_by(value: Value, op: Op) -> Node | None:
    return value.node if value.node is not None and value.node.op is op else None


def _sum(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """x + 0 and 0 + x."""
    return next(([x] for x, y in (inputs, inputs[::-1]) if is_number(y, 0)), None)


def _product(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """x * 1 and 1 * x."""
    return next(([x] for x, y in (inputs, inputs[::-1]) if is_number(y, 1)), None)


def _difference(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """x - 0."""
    return [inputs[0]] if is_number(inputs[1], 0) else None


def _quotient(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """x / 1."""
    return [inputs[0]] if is_number(inputs[1], 1) else None


def _cast(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """A cast to the dtype that x has; a 16-bit float that was widened only."""
    x = inputs[0]
    if x.dtype == node.attr["dtype"]:
        return [x]
    before = _made_by(x, cast)
    if before and x.dtype == "f32" and before.inputs[0].dtype in FLOATS:
        return [before.inputs[0]]
    return None


def _same(node: Node, inputs: Sequence[Value]) -> Sequence[Value] | None:
    """A view that has the shape of what it views."""
    return [inputs[0]]


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
    return reshape.apply((source,), node.attr, node.loc, node.scope, node.origin).outputs


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
    return transpose.apply((before.inputs[0],), {"order": joined}, node.loc, node.scope,
                           node.origin).outputs


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
    """One operand, or all the pieces of something that was split."""
    if len(inputs) == 1:
        return inputs
    before = _made_by(inputs[0], split)
    axis = node.attr["axis"] % len(inputs[0].shape)
    if (before is None or tuple(inputs) != before.outputs
            or before.attr["axis"] % len(inputs[0].shape) != axis):
        return None
    return [before.inputs[0]]


SIMPLER: dict[Op, Simplify] = {
    add: _sum, sub: _difference, mul: _product, div: _quotient, cast: _cast, reshape: _reshape,
    transpose: _transpose, expand: _same, slice: _same, split: _split, concat: _concat}
"""By op, what can take the place of its outputs: used if the types are equal."""
