"""A row reduction that only one matmul reads becomes its prologue.

With one row (decoding) a norm keeps one thread busy while the others wait at a barrier; as a
prologue, every thread makes the row for itself. A loop without reductions stays as it is: the
threads share the columns of its rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from graphdsl.ir import Graph, Node, Value
from graphdsl.op import Op
from graphdsl.ops.linear import matmul_nt
from graphdsl.passes.base import Missed, Result, Target, in_bodies
from graphdsl.passes.epilogues import MATMUL_EPILOGUE, is_weighted
from graphdsl.passes.loops import LOOP, fired_nodes, loop_space
from graphdsl.passes.memory import order_edges
from graphdsl.passes.repeat import REPEAT, through_body
from graphdsl.passes.rewrite import outline

MATMUL_PROLOGUE = Op("matmul_prologue", through_body)
"""A loop, and the matmul_nt or matmul_epilogue that multiplies its rows."""

RULE = "MatmulPrologue"


def candidates(graph: Graph) -> Iterator[tuple[Node, Node]]:
    """Every matmul by params whose rows are made by a loop with a reduction, behind that loop."""
    for node in graph.nodes:
        if node.op is MATMUL_EPILOGUE or is_weighted(node):
            loop = _rows_of(node).node
            if loop is not None and loop.op is LOOP and _reduces(loop):
                yield loop, node


def _rows_of(node: Node) -> Value:
    """The operand that the matmuls of a node share."""
    if node.body is None:
        return node.inputs[0]
    first = next(n for n in node.body.nodes if n.op is matmul_nt)
    return node.inputs[node.body.leaves.index(first.inputs[0])]


def _reduces(loop: Node) -> bool:
    assert loop.body is not None
    return any(n.op.kind == "reduce" for n in loop.body.nodes)


def early_readers(graph: Graph) -> frozenset[Node]:
    """The nodes that have to come before something that overwrites what they read."""
    return frozenset(n for readers in order_edges(graph).values() for n in readers)


def refusal(graph: Graph, early: frozenset[Node], loop: Node, matmul: Node) -> str:
    """Why `loop` cannot be the prologue of `matmul`, or an empty string; `early` are the graph's
    early readers."""
    assert loop.body is not None
    rows = _rows_of(matmul)
    if len(loop.outputs) > 1:
        return f"the loop has {len(loop.outputs)} outputs, wanted 1"
    for user in graph.users[rows]:
        if user is not matmul:
            place = f"read by {user.name} at {user.loc} too" if user else "an output too"
            return f"what the loop makes is {place}"
    if _is_epilogue_operand(rows, matmul):
        return "what the loop makes is read by the matmul's epilogue too"
    if loop_space(loop.body) != rows.shape:
        return "the loop makes less than it iterates over"
    if any(v.is_param and v in loop.inputs for v in _weights(matmul)):
        return "the loop reads the matmul's weight"
    if loop in early:
        return "the loop reads state that is overwritten later"
    return ""


def _is_epilogue_operand(value: Value, matmul: Node) -> bool:
    if matmul.body is None:
        return False
    leaf = matmul.body.leaves[matmul.inputs.index(value)]
    return any(u is None or u.op is not matmul_nt for u in matmul.body.users[leaf])


def _weights(matmul: Node) -> list[Value]:
    if matmul.body is None:
        return [matmul.inputs[1]]
    place = matmul.body.leaves.index
    return [matmul.inputs[place(n.inputs[1])] for n in matmul.body.nodes if n.op is matmul_nt]


def fuse_prologues(graph: Graph) -> Graph:
    """`graph` and the bodies of its repeats with prologues. A loop that one node reads can be
    joined with it: no path leaves the two and comes back."""
    graph = in_bodies(graph, fuse_prologues)
    early = early_readers(graph)
    groups = [pair for pair in candidates(graph) if not refusal(graph, early, *pair)]
    return outline(graph, groups, MATMUL_PROLOGUE)


def near_misses(graph: Graph) -> Iterator[Missed]:
    """The candidates that are left, those in bodies of repeats included."""
    early = early_readers(graph)
    for loop, matmul in candidates(graph):
        yield Missed(RULE, matmul.loc, matmul.scope, refusal(graph, early, loop, matmul), loop.loc)
    for node in graph.nodes:
        if node.op is REPEAT and node.body is not None:
            yield from near_misses(node.body)


@dataclass(frozen=True)
class FusePrologues:
    """A norm is computed by the matmul that reads it."""

    name: ClassVar[str] = "prologues"

    def run(self, graph: Graph, target: Target) -> Result:
        if not target.fuses_prologues:
            return Result(graph)
        new = fuse_prologues(graph)
        return Result(new, fired_nodes(new, MATMUL_PROLOGUE, RULE), tuple(near_misses(new)))
