"""Runs of pointwise and row-reduction kernels become loops.

Every node gets a stage: it never falls along an edge, and rises on each edge that cannot lie
inside a loop (another kind of op or another iteration space). Connected nodes of one space and one
stage form a loop; no two of them can need each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from graphdsl.ir import Graph, Node, Size, Value
from graphdsl.op import Op, constant
from graphdsl.ops.linear import matmul_nt
from graphdsl.ops.math import cast
from graphdsl.ops.shape import expand
from graphdsl.passes.base import Fired, Result, Target, in_bodies
from graphdsl.passes.memory import order_edges, ordered
from graphdsl.passes.repeat import REPEAT, through_body
from graphdsl.passes.rewrite import outline, substitute

Space = tuple[Size, ...]


LOOP = Op("loop", through_body)
"""Pointwise and reduce kernels over one iteration space; see `loop_space`."""


def loop_space(body: Graph) -> Space:
    """The shape that a loop iterates over: the widest of its nodes' shapes."""
    shapes = [n.inputs[0].shape if n.op.kind == "reduce" else n.out_types[0].shape
              for n in body.nodes]
    rank = max(len(s) for s in shapes)
    wide = [s for s in shapes if len(s) == rank]
    return tuple(next((s[i] for s in wide if s[i] != 1), 1) for i in range(rank))


def is_inner(node: Node) -> bool:
    """Whether a loop can hold the node."""
    return node.op.kind in ("pointwise", "reduce") and node.op is not constant


def spaces(graph: Graph) -> dict[Node, Space]:
    """The space of every node that a loop can hold. A row's scalar (last size 1) belongs to the
    space of the reduction that it is made from, or else to the one that its readers share."""
    found: dict[Node, Space] = {}
    for node in graph.nodes:
        if is_inner(node):
            found[node] = _space(node, found)
    for node in reversed(found):
        if node.op.kind == "pointwise" and found[node] == node.out_types[0].shape:
            found[node] = _readers_space(graph, node, found)
    return found


def _readers_space(graph: Graph, node: Node, found: dict[Node, Space]) -> Space:
    """The one space of those who read a row's scalar, if it has the same rows."""
    shape = node.out_types[0].shape
    readers = graph.users[node.outputs[0]]
    wanted = {found.get(u) if u else None for u in readers}
    space = wanted.pop() if shape[-1:] == (1,) and len(wanted) == 1 else None
    return space if space and space[:-1] == shape[:-1] else shape


def _space(node: Node, found: dict[Node, Space]) -> Space:
    if node.op.kind == "reduce":
        return node.inputs[0].shape
    shape = node.out_types[0].shape
    if not shape or shape[-1] != 1:
        return shape
    for value in node.inputs:
        space = found.get(value.node) if value.node else None
        if space and space[:-1] == shape[:-1] and value.shape[-1:] == (1,):
            return space
    return shape


def stages(graph: Graph, space: dict[Node, Space]) -> dict[Node, int]:
    """The stage of every node, for loops over these spaces."""
    before = order_edges(graph)
    stage: dict[Node, int] = {}
    for node in ordered(graph):
        level = 0
        for value in node.inputs:
            made_by = value.node
            if made_by is not None and made_by.op is not constant:
                inside = node in space and space.get(made_by) == space[node]
                level = max(level, stage[made_by] + (not inside))
        for reader in before.get(node, ()):
            level = max(level, stage[reader] + 1)
        stage[node] = level
    return stage


def clusters(graph: Graph) -> list[list[Node]]:
    """The groups of nodes that become loops."""
    space = spaces(graph)
    stage = stages(graph, space)
    leader = {n: n for n in space}

    def find(node: Node) -> Node:
        while leader[node] is not node:
            leader[node] = leader[leader[node]]
            node = leader[node]
        return node

    for node in space:
        for made_by in (v.node for v in node.inputs):
            same = made_by in space and space[made_by] == space[node]
            if made_by is not None and same and stage[made_by] == stage[node]:
                leader[find(made_by)] = find(node)
    groups: dict[Node, list[Node]] = {}
    for node in space:
        groups.setdefault(find(node), []).append(node)
    return [*groups.values(), *_lone_constants(graph)]


def _lone_constants(graph: Graph) -> list[list[Node]]:
    """Constants that something else than a loop reads: each is a loop by itself."""
    return [[n] for n in graph.nodes if n.op is constant
            and not all(u and is_inner(u) for u in graph.users[n.outputs[0]])]


def casts_after_views(graph: Graph) -> Graph:
    """`graph` with casts behind the views of them, in the loops that read those: what no loop or
    matmul makes would have to be cast by a loop of its own."""
    new: dict[Value, Value] = {}
    for node in graph.nodes:
        if node.op is cast and _is_loose(node.inputs[0]) and _are_loops(graph, node.outputs[0]):
            for view in graph.users[node.outputs[0]]:
                if view is not None and view.op.kind == "view":
                    new.update(_cast_after(view, node))
    return casts_after_views(substitute(graph, new)) if new else graph


def _is_loose(value: Value) -> bool:
    """Whether neither a loop nor a matmul with an epilogue makes a value."""
    while value.node is not None and value.node.op.kind == "view":
        value = value.node.inputs[0]
    made = value.node
    return made is None or (made.op.kind == "call" and made.op is not matmul_nt)


def _are_loops(graph: Graph, value: Value) -> bool:
    """Whether loops alone read a value, through views that repeat nothing."""
    for user in graph.users.get(value, []):
        if user is None or user.op is expand:
            return False
        inside = user.op.kind == "view" and all(_are_loops(graph, v) for v in user.outputs)
        if not inside and not is_inner(user):
            return False
    return True


def _cast_after(view: Node, node: Node) -> dict[Value, Value]:
    """The results of a view of the cast `node`, each as a cast of a view."""
    types = tuple(replace(t, dtype=node.inputs[0].dtype) for t in view.out_types)
    moved = replace(view, inputs=node.inputs, out_types=types)
    return {old: cast.apply((v,), node.attr, node.loc, node.scope, node.origin).outputs[0]
            for old, v in zip(view.outputs, moved.outputs, strict=True)}


def fuse_loops(graph: Graph) -> Graph:
    """`graph` and the bodies of its repeats with every cluster as one loop."""
    graph = casts_after_views(in_bodies(graph, fuse_loops))
    return outline(graph, clusters(graph), LOOP)


@dataclass(frozen=True)
class FuseLoops:
    """Pointwise and row-reduction kernels that are connected become loops."""

    name: ClassVar[str] = "loops"

    def run(self, graph: Graph, target: Target) -> Result:
        if not target.fuses_loops:
            return Result(graph)
        new = fuse_loops(graph)
        return Result(new, fired_nodes(new, LOOP, "Loop"))


def fired_nodes(graph: Graph, op: Op, rule: str) -> tuple[Fired, ...]:
    """One Fired for every node of `op`, those in bodies of repeats included."""
    fired: list[Fired] = []
    for node in graph.nodes:
        if node.op is op:
            fired.append(Fired(rule, node.loc, node.scope))
        elif node.op is REPEAT and node.body is not None:
            fired += fired_nodes(node.body, op, rule)
    return tuple(fired)
