"""Which params are read in a backend's packed format, and twins for those that are also read
plainly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from graphdsl.ir import Graph, Node, Value
from graphdsl.passes.repeat import make_repeat, operands_of


class PackedInputs(Protocol):
    """The part of a backend that this module asks."""

    def packed_inputs(self, node: Node) -> tuple[int, ...]:
        """Inputs that are read in the backend's packed weight format."""


def packed_params(graph: Graph, backend: PackedInputs) -> frozenset[Value]:
    """The params of `graph` and of its repeats' bodies that are read packed."""
    packed: set[Value] = set()
    for node in graph.nodes:
        if node.name == "repeat" and node.body is not None:
            packed |= packed_params(node.body, backend)
        packed |= {node.inputs[i] for i in packed_places(node, backend)
                   if node.inputs[i].is_param}
    return frozenset(packed)


def packed_places(node: Node, backend: PackedInputs) -> tuple[int, ...]:
    """The inputs of a node that are read packed; for a repeat, those that its body reads so."""
    if node.name != "repeat" or node.body is None:
        return backend.packed_inputs(node)
    inner = packed_params(node.body, backend)
    rows = operands_of(node, range(len(node.inputs))).params
    return tuple(place for row in rows
                 for place, param in zip(row, node.body.params, strict=True) if param in inner)


def separate_plain_uses(graph: Graph, backend: PackedInputs) -> Graph:
    """`graph` with a second param of the same name for every one that is read both packed and
    plainly, so that each has one format."""
    graph = _separated_bodies(graph, backend)
    packed = packed_params(graph, backend) & set(graph.params)
    twins: dict[Value, Value] = {}
    moved: dict[Value, Value] = {}
    for node in graph.nodes:
        places = packed_places(node, backend)
        inputs = tuple(_twin(v, twins) if v in packed and i not in places else moved.get(v, v)
                       for i, v in enumerate(node.inputs))
        if any(a is not b for a, b in zip(inputs, node.inputs, strict=True)):
            moved.update(zip(node.outputs, replace(node, inputs=inputs).outputs, strict=True))
    if not moved:
        return graph
    outputs = tuple(moved.get(v, v) for v in graph.outputs)
    return replace(graph, params=(*graph.params, *twins.values()), outputs=outputs)


def _twin(param: Value, twins: dict[Value, Value]) -> Value:
    return twins.setdefault(param, Value(param.type, name=param.name, kind="param"))


def _separated_bodies(graph: Graph, backend: PackedInputs) -> Graph:
    moved: dict[Value, Value] = {}
    for node in graph.nodes:
        inputs = tuple(moved.get(v, v) for v in node.inputs)
        new = replace(node, inputs=inputs) if inputs != node.inputs else node
        if node.name == "repeat" and node.body is not None:
            body = separate_plain_uses(node.body, backend)
            if body is not node.body:
                new = _with_body(new, node.body.params, body)
        if new is not node:
            moved.update(zip(node.outputs, new.outputs, strict=True))
    return replace(graph, outputs=tuple(moved.get(v, v) for v in graph.outputs))


def _with_body(node: Node, before: Sequence[Value], body: Graph) -> Node:
    """The repeat with a body that has more params: twins of those it had, by name."""
    place = {v.name: i for i, v in enumerate(before)}
    added = [place[twin.name] for twin in body.params[len(before):]]
    operands = operands_of(node, node.inputs)
    rows = tuple((*row, *(row[i] for i in added)) for row in operands.params)
    return make_repeat(body, replace(operands, params=rows), node)
