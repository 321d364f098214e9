"""Symbolic sizes of a graph replaced by numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from graphdsl.errors import GraphError
from graphdsl.ir import FLOATS, Affine, Dim, Graph, Node, Size, TensorType, Value, constant, terms


@dataclass
class Sizes:
    """The numbers of a graph's dims, and the bodies that have them already. Raises GraphError for
    a dim without a number."""

    graph: str
    known: Mapping[Dim, int]
    types: dict[TensorType, TensorType] = field(default_factory=dict)
    bodies: dict[Graph, Graph] = field(default_factory=dict)

    def size(self, size: Size) -> int:
        for dim in terms(size):
            if dim not in self.known and dim.lo != dim.hi:
                raise GraphError(f"{self.graph}: {dim} is a size of its own, and a static graph "
                                 "has numbers alone", hint=f"a whole number in place of {dim}")
        return constant(size) + sum(k * self.known.get(d, d.lo) for d, k in terms(size).items())

    def type(self, kind: TensorType) -> TensorType:
        if kind not in self.types:
            self.types[kind] = replace(kind, shape=tuple(map(self.size, kind.shape)))
        return self.types[kind]

    def leaf(self, value: Value) -> Value:
        kind = self.type(value.type)
        return value if kind == value.type else replace(value, type=kind)

    def node(self, node: Node, inputs: tuple[Value, ...]) -> Node:
        """`node` with other operands and with numbers in its types, attributes and body."""
        attrs = tuple((key, self.attribute(value)) for key, value in node.attrs)
        if node.name == "constant" and node.attr["dtype"] in FLOATS:
            attrs = tuple((k, float(v) if k == "value" else v) for k, v in attrs)
        body = None if node.body is None else self.body(node.body)
        return Node(node.op, inputs, attrs, tuple(map(self.type, node.out_types)), body, node.loc,
                    node.scope, node.origin)

    def attribute(self, value: Any) -> Any:
        if isinstance(value, Dim | Affine):
            return self.size(value)
        return tuple(map(self.attribute, value)) if isinstance(value, tuple) else value

    def body(self, body: Graph) -> Graph:
        if body in self.bodies:
            return self.bodies[body]
        env = {v: self.leaf(v) for v in body.leaves}
        for node in body.nodes:
            made = self.node(node, tuple([env[v] for v in node.inputs]))
            env.update(zip(node.outputs, made.outputs, strict=True))
        inputs, params, state, outputs = (tuple(env[v] for v in values) for values in (
            body.inputs, body.params, body.state, body.outputs))
        self.bodies[body] = Graph(body.name, inputs, params, state, outputs)
        return self.bodies[body]
