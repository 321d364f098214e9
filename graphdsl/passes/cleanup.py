"""Clean-up: equal subexpressions are computed once, and what does nothing is dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from graphdsl.ir import Graph, Node, Value
from graphdsl.passes.base import Missed, Result, Target, in_bodies
from graphdsl.passes.identities import simplified
from graphdsl.passes.memory import effects_of
from graphdsl.passes.rewrite import substitute


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


def nearly_equal(graph: Graph) -> tuple[Missed, ...]:
    """Operations on the same operands that would be one but for an attribute."""
    first: dict[Any, Node] = {}
    missed = []
    for node in graph.nodes:
        other = first.setdefault((node.op, node.inputs), node)
        if other is node or not node.op.is_operation or not node.attrs:
            continue
        name, value = next((a for a in node.attrs if a not in other.attrs), node.attrs[0])
        missed.append(Missed("CommonSubexpression", node.loc, node.scope,
                             f"{name} of {node.name} is {value}, that of the other {node.name} of "
                             f"this value is {other.attr.get(name)}", other.loc))
    return tuple(missed)


def tidied(graph: Graph) -> Graph:
    """What rules look at: one value for equal ones, one spelling for what has several."""
    return common_subexpressions(simplified(graph))


@dataclass(frozen=True)
class CleanUp:
    """Equal subexpressions and identities, in the graph and in the bodies of repeats."""

    name: ClassVar[str] = "cleanup"

    def run(self, graph: Graph, target: Target) -> Result:
        return Result(tidied(graph))
