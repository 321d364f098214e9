"""When two bodies are the same but for their leaves, and where they first differ."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from graphdsl.errors import Loc
from graphdsl.ir import Graph, Node, Value


@dataclass
class Structures:
    """Numbers bodies: equal structure, equal number. Lines and names play no part."""

    numbers: dict[Any, int] = field(default_factory=dict)
    known: dict[Graph, int] = field(default_factory=dict)

    def number(self, body: Graph) -> int:
        """The number of a body's structure."""
        if body not in self.known:
            key = self._key(body)
            self.known[body] = self.numbers.setdefault(key, len(self.numbers))
        return self.known[body]

    def _key(self, body: Graph) -> Any:
        index: dict[Value, tuple[int, int]] = {v: (-1, i) for i, v in enumerate(body.leaves)}
        lines = []
        for i, node in enumerate(body.nodes):
            inner = self.number(node.body) if node.body is not None else -1
            lines.append((node.op.function, node.attrs, inner, node.out_types,
                          tuple(index[v] for v in node.inputs)))
            index.update((v, (i, j)) for j, v in enumerate(node.outputs))
        leaves = tuple(tuple(v.type for v in part)
                       for part in (body.inputs, body.state, body.params))
        return leaves, tuple(lines), tuple(index[v] for v in body.outputs)


def difference(body: Graph, other: Graph) -> tuple[str, Loc | None]:
    """What `body` has that `other` has not, and its line."""
    for a, b in zip(body.leaves, other.leaves, strict=False):
        if a.type != b.type:
            return f"{a.name} is {a.type}, not {b.type}", None
    for node, counterpart in zip(body.nodes, other.nodes, strict=False):
        found = _node_difference(node, counterpart)
        if found:
            return found
    return "it computes something else", None


def _node_difference(node: Node, other: Node) -> tuple[str, Loc | None] | None:
    if node.op.function is not other.op.function:
        return f"it has {node.name} where the other has {other.name}", node.loc
    for name, value in node.attrs:
        if other.attr.get(name) != value:
            return f"{name} of {node.name} is {value}, not {other.attr.get(name)}", node.loc
    if node.out_types != other.out_types:
        return f"{node.name} makes {node.out_types[0]}, not {other.out_types[0]}", node.loc
    if node.body is not None and other.body is not None and _is_own(node):
        text, loc = difference(node.body, other.body)
        return None if text == "it computes something else" else (text, loc)
    return None


def _is_own(node: Node) -> bool:
    """Whether the body is the node's own and not that of an operation."""
    return node.body is not None and bool(node.body.params or node.body.state)
