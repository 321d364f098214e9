"""Layers that stand in a row become a repeat; the others are opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from graphdsl.ir import Graph, Node
from graphdsl.passes.base import Result
from graphdsl.passes.rewrite import inline

if TYPE_CHECKING:
    from graphdsl.backend import Target


def is_layer(node: Node) -> bool:
    """Whether the node is a Layer: an Operation with params or state of its own."""
    return (node.body is not None and node.op.is_operation
            and bool(node.body.params or node.body.state))


@dataclass(frozen=True)
class Roll:
    """Runs of equal Layers become a repeat."""

    name: ClassVar[str] = "roll"
    min_turns: int = 2

    def run(self, graph: Graph, target: Target) -> Result:
        while any(map(is_layer, graph.nodes)):
            graph = inline(graph, is_layer, keep_lines=is_layer)
        return Result(graph)
