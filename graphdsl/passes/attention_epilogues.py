"""Pointwise kernels that follow an attention are computed where its rows are finished.

A gate or a scale reads every row of the attention once more and writes it again. As its epilogue
it works on the row in f32 while that is in cache, and the attention's own result never reaches
memory. Heads that are merged first are no obstacle: the work moves in front of the reshape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from graphdsl.ir import Graph, Node, Size, Value, scaled
from graphdsl.op import Op
from graphdsl.ops.attention import attention
from graphdsl.ops.shape import reshape
from graphdsl.passes.base import Missed, Result, Target, in_bodies
from graphdsl.passes.loops import fired_nodes, is_inner
from graphdsl.passes.match import NoMatch
from graphdsl.passes.memory import order_edges
from graphdsl.passes.repeat import through_body
from graphdsl.passes.rewrite import outline, substitute

ATTENTION_EPILOGUE = Op("attention_epilogue", through_body)
"""An attention, and pointwise kernels of its shape with one result."""

RULE = "AttentionEpilogue"


def only_reader(graph: Graph, value: Value) -> Node | None:
    """The one node that reads a value, if there is just one."""
    readers = graph.users.get(value, [])
    return readers[0] if len(readers) == 1 else None


def before_merging(graph: Graph) -> Graph:
    """`graph` with pointwise work on merged heads in front of the reshape that merges them."""
    finished: set[Value] = set()
    new: dict[Value, Value] = {}
    for node in graph.nodes:
        shape = node.out_types[0].shape
        if node.op is attention or (node.op.kind == "pointwise" and any(
                v in finished and v.shape == shape for v in node.inputs)):
            finished.add(node.outputs[0])
        elif node.op is reshape and node.inputs[0] in finished:
            new.update(_moved(graph, node))
    return before_merging(substitute(graph, new)) if new else graph


def _moved(graph: Graph, merge: Node) -> dict[Value, Value]:
    """The work that alone reads merged heads, done before they are merged."""
    user = only_reader(graph, merge.outputs[0])
    if user is None or user.op.kind != "pointwise" or user.out_types[0].shape != merge.out_types[
            0].shape or only_reader(graph, merge.inputs[0]) is not merge:
        return {}
    operands = [_in_heads(v, merge) for v in user.inputs]
    known = tuple(v for v in operands if v is not None)
    if len(known) < len(operands):
        return {}
    inner = user.op.apply(known, user.attr, user.loc, user.scope, user.origin)
    merged = reshape.apply(inner.outputs, merge.attr, merge.loc, merge.scope, merge.origin)
    return {user.outputs[0]: merged.outputs[0]}


def _in_heads(value: Value, merge: Node) -> Value | None:
    """An operand of work on merged heads, as work on heads takes it; None where no view is it."""
    if value is merge.outputs[0]:
        return merge.inputs[0]
    merged, heads = merge.out_types[0].shape, merge.inputs[0].shape
    if not value.shape:
        return value
    shapes: dict[tuple[Size, ...], tuple[Size, ...]] = {merged: heads}
    if isinstance(heads[-2], int) and merged[-1] == scaled(heads[-1], heads[-2]):
        shapes |= {merged[-1:]: heads[-2:], (*merged[:-1], 1): (*heads[:-2], 1, 1)}
    if value.shape not in shapes:
        return None
    attrs = {"shape": shapes[value.shape]}
    return reshape.apply((value,), attrs, merge.loc, merge.scope).outputs[0]


@dataclass(frozen=True)
class _Claims:
    """What attentions of one graph can take in: `before` are the readers that have to come before
    a node overwrites what they read, `unit_of` the groups so far."""

    graph: Graph
    before: dict[Node, tuple[Node, ...]]
    unit_of: dict[Node, list[Node]] = field(default_factory=dict)

    def claimed(self, node: Node) -> list[Node]:
        """The attention and the pointwise nodes that follow. Raises NoMatch where they have to
        stay outside."""
        near = [u for u in self.graph.users[node.outputs[0]] if u and _works_on(u, node)]
        group = dict.fromkeys([node])
        for other in self.followers(node):
            if all(v.node in group or self.is_ready(v, node) for v in other.inputs):
                group[other] = None
        if len(group) == 1:
            late = next(v for v in near[0].inputs
                        if v.node is not node and not self.is_ready(v, node))
            raise NoMatch("an operand is made later than the attention", late)
        read = [n.outputs[0] for n in group
                if any(u not in group for u in self.graph.users[n.outputs[0]])]
        if len(read) > 1:
            what = "the attention's result" if read[0].node is node else "what follows"
            raise NoMatch(f"{what} is read elsewhere too", read[0])
        readers = [u for v in read for u in self.readers(v)]
        if all(u is not None and is_inner(u) for u in readers):
            raise NoMatch("a loop reads the result and does this work as well", read[0])
        unit = list(group)
        self.unit_of.update((member, unit) for member in unit)
        return unit

    def followers(self, node: Node) -> list[Node]:
        """Pointwise nodes of the attention's shape that follow from it, in order."""
        found: dict[Node, None] = {}
        todo = [node]
        while todo:
            for user in self.graph.users.get(todo.pop().outputs[0], []):
                if user is not None and user not in found and _works_on(user, node):
                    found[user] = None
                    todo.append(user)
        return [n for n in self.graph.nodes if n in found] if found else []

    def is_ready(self, value: Value, node: Node) -> bool:
        """Whether a value does not need the attention, directly or through other groups."""
        seen: set[Node] = set()
        todo = [value.node]
        while todo:
            made = todo.pop()
            if made is node:
                return False
            if made is None or made in seen:
                continue
            unit = self.unit_of.get(made, [made])
            seen.update(unit)
            todo += [v.node for n in unit for v in n.inputs]
            todo += [reader for n in unit for reader in self.before.get(n, ())]
        return True

    def readers(self, value: Value) -> Iterator[Node | None]:
        """Who reads a value, through views."""
        for user in self.graph.users.get(value, []):
            if user is None or user.op.kind != "view":
                yield user
                continue
            for piece in user.outputs:
                yield from self.readers(piece)


def _works_on(user: Node, node: Node) -> bool:
    return user.op.kind == "pointwise" and user.out_types[0].shape == node.out_types[0].shape


def groups_of(graph: Graph) -> tuple[list[list[Node]], list[Missed]]:
    """Attentions with what they take in, and those that nearly do."""
    found = [n for n in graph.nodes if n.op is attention and n.out_types[0].shape[-1] != 1
             and any(u and _works_on(u, n) for u in graph.users[n.outputs[0]])]
    claims = _Claims(graph, order_edges(graph) if found else {})
    groups, missed = [], []
    for node in found:
        try:
            groups.append(claims.claimed(node))
        except NoMatch as failure:
            at = failure.at.loc if failure.at is not None else None
            missed.append(Missed(RULE, node.loc, node.scope, failure.reason, at))
    return groups, missed


def fuse_attention(graph: Graph, missed: list[Missed]) -> Graph:
    """`graph` and the bodies of its repeats with epilogues of attentions; work on merged heads
    stays where it is if an attention cannot take it in."""
    graph = in_bodies(graph, lambda body: fuse_attention(body, missed))
    moved = before_merging(graph)
    groups, reasons = groups_of(moved)
    missed += reasons
    if reasons and moved is not graph:
        moved, groups = graph, groups_of(graph)[0]
    return outline(moved, groups, ATTENTION_EPILOGUE)


@dataclass(frozen=True)
class FuseAttention:
    """A gate, a scale or a cast after an attention is computed where its rows are finished."""

    name: ClassVar[str] = "attention_epilogues"

    def run(self, graph: Graph, target: Target) -> Result:
        if not target.fuses_loops or not target.fuses_attention:
            return Result(graph)
        missed: list[Missed] = []
        new = fuse_attention(graph, missed)
        return Result(new, fired_nodes(new, ATTENTION_EPILOGUE, RULE), tuple(missed))
