"""The reference of a tensor-parallel run: the graphs of all ranks in lock step, in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from graphdsl.errors import GraphError
from graphdsl.ir import Graph, Node, Value
from graphdsl.ops.collectives import COLLECTIVES, collectives_of, exchanged
from graphdsl.passes.repeat import REPEAT, operands_of
from graphdsl.reference import bound, run_node

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]
Env = dict[Value, "Tensor"]


def run_ranks(graphs: Sequence[Graph], inputs: Tensors | Sequence[Tensor],
              params: Sequence[Tensors], states: Sequence[Tensors] = (), *,
              exact: bool = False) -> list[list[Tensor]]:
    """The outputs of the graph of every rank, as `graphdsl.reference.run` gives them.

    All ranks have the same inputs; params and state are those of each rank. Raises GraphError for
    graphs that are not those of as many ranks, and as `run` does.
    """
    for rank, graph in enumerate(graphs):
        for node in collectives_of(graph):
            if (node.attr["rank"], node.attr["ranks"]) != (rank, len(graphs)):
                raise GraphError(f"{graph.name}: {node.name} is that of rank {node.attr['rank']} "
                                 f"of {node.attr['ranks']}, wanted {rank} of {len(graphs)}",
                                 node.loc, "give the graph of every rank, in order")
    own = states or [{}] * len(graphs)
    begun = [bound(g, inputs, p, s, exact=exact)
             for g, p, s in zip(graphs, params, own, strict=True)]
    together = _Together([dims for _, dims in begun], exact)
    return together.run(graphs, [env for env, _ in begun])


class _Together:
    """One run: the sizes of every rank."""

    def __init__(self, dims: Sequence[dict[str, int]], exact: bool) -> None:
        self.dims, self.exact = dims, exact

    def run(self, graphs: Sequence[Graph], envs: Sequence[Env]) -> list[list[Tensor]]:
        for nodes in zip(*(g.nodes for g in graphs), strict=True):
            given = [[env[v] for v in n.inputs] for n, env in zip(nodes, envs, strict=True)]
            for node, env, outputs in zip(nodes, envs, self.node(nodes, given), strict=True):
                env.update(zip(node.outputs, outputs, strict=True))
        return [[env[v] for v in g.outputs] for g, env in zip(graphs, envs, strict=True)]

    def node(self, nodes: Sequence[Node], given: Sequence[list[Tensor]]
             ) -> Sequence[Sequence[Tensor]]:
        """The outputs of one node of every rank."""
        first = nodes[0]
        if any(n.name != first.name for n in nodes):
            raise GraphError(f"the ranks do different things: {', '.join(n.name for n in nodes)}",
                             first.loc)
        if first.op in COLLECTIVES:
            return [(exchanged(first, [x[0] for x in given]),)] * len(nodes)
        bodies = [n.body for n in nodes if n.body is not None]
        if not bodies or not collectives_of(bodies[0]):
            return [run_node(n, x, dims, self.exact)
                    for n, x, dims in zip(nodes, given, self.dims, strict=True)]
        if first.op is REPEAT:
            return self.repeat(nodes, bodies, given)
        return self.run(bodies, [dict(zip(b.leaves, x, strict=True))
                                 for b, x in zip(bodies, given, strict=True)])

    def repeat(self, nodes: Sequence[Node], bodies: Sequence[Graph],
               given: Sequence[list[Tensor]]) -> Sequence[Sequence[Tensor]]:
        """Turn by turn, as the reference runs a repeat."""
        split = [operands_of(n, x) for n, x in zip(nodes, given, strict=True)]
        carried = [list(s.carried) for s in split]
        new_state: list[list[Tensor]] = [[] for _ in nodes]
        for turn in range(nodes[0].attr["turns"]):
            leaves = [[*c, *s.invariant, *s.state[turn], *s.params[turn]]
                      for c, s in zip(carried, split, strict=True)]
            outputs = self.run(bodies, [dict(zip(b.leaves, x, strict=True))
                                        for b, x in zip(bodies, leaves, strict=True)])
            for rank, found in enumerate(outputs):
                count = len(carried[rank])
                carried[rank] = found[:count]
                new_state[rank] += found[count:]
        return [(*c, *s) for c, s in zip(carried, new_state, strict=True)]
