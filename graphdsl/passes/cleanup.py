"""Clean-up: equal subexpressions are computed once, and what does nothing is dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphdsl.ir import Graph, Value
from graphdsl.passes.base import Result, in_bodies
from graphdsl.passes.identities import simplified
from graphdsl.passes.memory import effects_of
from graphdsl.passes.rewrite import substitute

if TYPE_CHECKING:
    from graphdsl.backend import Target


def common_subexpressions(graph: Graph) -> Graph:
    """`graph` with nodes of equal op, inputs and attributes made one. Nodes that overwrite memory
    stay, for each makes its own."""
    graph = in_bodies(graph, common_subexpressions)
    first: dict[Any, tuple[Value, ...]] = {}
    new: dict[Value, Value] = {}
    for node in graph.nodes:
        inputs = tuple(new.get(v, v) for v in node.inputs)
        if node.body is not None and not node.op.is_operation:
            continue
        key = (node.op, inputs, node.attrs)
        known = first.setdefault(key, node.outputs)
        if known is not node.outputs and not effects_of(node).writes:
            new.update(zip(node.outputs, known, strict=True))
    return substitute(graph, new) if new else graph


@dataclass(frozen=True)
class CleanUp:
    """Equal subexpressions and identities, in the graph and in the bodies of repeats."""

    name: ClassVar[str] = "cleanup"

    def run(self, graph: Graph, target: Target) -> Result:
        return Result(common_subexpressions(simplified(graph)))
