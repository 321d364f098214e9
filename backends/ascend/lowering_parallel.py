"""Sums over ranks: ATB's AllReduce, and LinearParallel for a linear that nothing else reads."""

from __future__ import annotations

from collections.abc import Sequence

from graphdsl.ir import Node
from graphdsl.ops.collectives import all_reduce
from graphdsl.ops.linear import linear
from graphdsl.passes.shard import RULE

from .lowering_graph import Builder, Fields, source_of


def joined_linears(nodes: Sequence[Node], soc: str) -> dict[Node, Node]:
    """The linear that each sum over ranks becomes one operation with: LinearParallel, which a 310p
    has not, takes no bias and a power of 2 ranks. What the pass `shard` adds up nothing else
    reads."""
    found: dict[Node, Node] = {}
    for node in nodes if soc == "910b" else ():
        if node.op is not all_reduce or RULE not in node.origin:
            continue
        made, ranks = source_of(node.inputs[0]).node, node.attr["ranks"]
        plain = made is not None and made.op is linear and len(made.inputs) == 2
        if made is not None and plain and made in nodes and not ranks & (ranks - 1):
            found[node] = made
    return found


def lower_linear_parallel(b: Builder, node: Node, made: Node) -> None:
    """A linear and the sum of it over all ranks."""
    x, w = made.inputs
    fields: Fields = {"transWeight": True, **_group(node)}
    width, out = x.shape[-1], node.outputs[0]
    assert isinstance(width, int)
    b.emit("LinearParallel", fields, [b.matrix(x, width), b.read(w)], [b.output(out)], node)


def lower_all_reduce(b: Builder, node: Node) -> None:
    """The sum over all ranks of what each has."""
    b.emit("AllReduce", _group(node), [b.matrix(node.inputs[0])], [b.output(node.outputs[0])],
           node)


def _group(node: Node) -> Fields:
    """ATB makes its own communicator of these."""
    return {"rank": node.attr["rank"], "rankSize": node.attr["ranks"]}


__all__ = ["joined_linears", "lower_all_reduce", "lower_linear_parallel"]
