"""Caches that shift are read by the length of their sequences: that of the last append.

Slot p of a sequence of n tokens lies n - p before the end, and n is what the positions of an
attention say. So they have to be the positions that were appended last.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphdsl.errors import GraphError
from graphdsl.ir import Graph, Node, Value
from graphdsl.passes.repeat import REPEAT, operands_of

APPENDS = {"kv_append": 2, "rope_append": 5, "norm_rope_append": 5}
"""Ops that append to caches: the operand that says where."""

Appended = dict[Value, Value | None]
"""By cache, the positions of its last append; None where that was outside of the graph."""


def check_shifts(graph: Graph) -> None:
    """Raises GraphError where an attention reads a cache that shifts by other positions than were
    appended to it last. A cache that is an input has been appended to."""
    if any(map(_shifts, graph.leaves)):
        _check(graph, {v: None for v in graph.inputs if _shifts(v)})


def _shifts(value: Value) -> bool:
    return value.type.layout is not None and value.type.layout.policy == "shift"


def _check(graph: Graph, appended: Appended) -> None:
    for node in graph.nodes:
        if node.name in APPENDS:
            positions = node.inputs[APPENDS[node.name]]
            appended.update((node.outputs[o], positions) for o, _ in node.op.aliases)
        elif node.name == "attention":
            _check_attention(node, appended)
        elif node.body is not None and any(map(_shifts, node.inputs)):
            _check_body(node, node.body, appended)


def _check_attention(node: Node, appended: Appended) -> None:
    for value in filter(_shifts, node.inputs[1:3]):
        if value not in appended:
            raise GraphError(f"attention reads {value.type} before the tokens of its positions "
                             "are appended: it cannot tell where rows lie", node.loc,
                             "append first, and read what append returns")
        if appended[value] not in (None, node.inputs[3]):
            written = f", written at {value.loc}," if value.loc else ""
            raise GraphError(f"attention reads {value.type}{written} by other positions than were "
                             "appended: it cannot tell where rows lie", node.loc,
                             "give it the positions of the append")


def _check_body(node: Node, body: Graph, appended: Appended) -> None:
    """What is known of the operands holds for the leaves of the body, and of what the body returns
    for the node's outputs."""
    operands = _operands(node)
    leaf_of = dict(zip(operands, body.leaves, strict=True))
    inner: Appended = {}
    for operand, leaf in zip(operands, body.leaves, strict=True):
        if operand in appended:
            positions = appended[operand]
            # Positions that the body does not see are none of those that it has.
            inner[leaf] = None if positions is None else leaf_of.get(positions, leaf)
    _check(body, inner)
    operand_of = dict(zip(body.leaves, operands, strict=True))
    for value, output in zip(_returned(node, body), node.outputs, strict=True):
        positions = inner.get(value)
        if positions in operand_of:
            appended[output] = operand_of[positions]


def _operands(node: Node) -> Sequence[Value]:
    """What the leaves of the body are; in a repeat those of the first turn."""
    if node.op is not REPEAT:
        return node.inputs
    split = operands_of(node, node.inputs)
    state = split.state[0] if split.state else ()
    return (*split.carried, *split.invariant, *state, *split.params[0])


def _returned(node: Node, body: Graph) -> Sequence[Value]:
    """The body's output behind every output of the node."""
    if node.op is not REPEAT:
        return body.outputs
    carried = node.attr["carried"]
    return (*body.outputs[:carried], *body.outputs[carried:] * node.attr["turns"])
