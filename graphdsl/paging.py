"""Which inputs say what blocks of a paged cache a step reads and writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from graphdsl.ir import Graph, Node, Size, Value
from graphdsl.passes.repeat import operands_of

SPARSE = ("relayout",)
"""Kernels to which slots of a page without a block are zeros."""


@dataclass(frozen=True)
class PagedRead:
    """Slots of a paged cache that kernels find through a block table: those up to the positions of
    an input, or where `positions` is None any that the table has. `slots` is the size of the
    cache's logical axis, which no tensor in memory has. `sparse` says that a page without a block
    may be among them."""

    positions: Value | None
    table: Value
    block: int
    slots: Size
    sparse: bool


def paged_reads(graph: Graph) -> list[PagedRead]:
    """The reads and writes through block tables that are state of `graph`, each kind once."""
    return list(dict.fromkeys(_reads(graph, {v: v for v in (*graph.inputs, *graph.state)})))


def _reads(graph: Graph, known: Mapping[Value, Value]) -> Iterator[PagedRead]:
    """`known` are the leaves that values inside a body are, or are views of."""
    home = dict(known)
    for node in graph.nodes:
        if node.body is not None:
            yield from _reads(node.body, {leaf: home[v] for leaf, v in _bound(node) if v in home})
            continue
        if node.op.kind == "view" and node.inputs[0] in home:
            home.update(dict.fromkeys(node.outputs, home[node.inputs[0]]))
        operands = dict(zip(node.op.present(len(node.inputs), node.attr), node.inputs, strict=True))
        table, cache = operands.get("table"), operands.get("cache", operands.get("k"))
        layout = None if cache is None else cache.type.layout
        if table in home and cache is not None and layout is not None and layout.block:
            assert table is not None
            yield PagedRead(_positions(node, operands, home), home[table], layout.block,
                            cache.shape[1], node.name in SPARSE)


def _positions(node: Node, operands: Mapping[str, Value],
               home: Mapping[Value, Value]) -> Value | None:
    """The input beyond whose positions nothing is read: that of a causal reader, or of a writer."""
    positions = operands.get("positions")
    if positions is None or not node.attr.get("causal", True):
        return None
    return home.get(positions)


def _bound(node: Node) -> Iterator[tuple[Value, Value]]:
    """The leaves of a body and what they are; those of a repeat in its first turn."""
    assert node.body is not None
    operands = node.inputs
    if node.name == "repeat":
        split = operands_of(node, operands)
        operands = (*split.carried, *split.invariant, *split.state[0], *split.params[0])
    yield from zip(node.body.leaves, operands, strict=True)


__all__ = ["PagedRead", "paged_reads"]
