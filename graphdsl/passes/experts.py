"""Experts that read the same rows become one: gate and up of a mixture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from graphdsl.ir import Graph, Node, Size, Value
from graphdsl.op import Op
from graphdsl.ops.linear import expert_linear
from graphdsl.ops.shape import concat, split
from graphdsl.passes.base import Fired, Missed, Result, Target, in_bodies
from graphdsl.passes.linear import is_made_of_params
from graphdsl.passes.rewrite import substitute

RULE = "JoinExperts"


def _made(op: Op, inputs: tuple[Value, ...], like: Node, **attrs: Any) -> Node:
    return op.apply(inputs, attrs, like.loc, like.scope, (*like.origin, RULE))


def joined(nodes: Sequence[Node]) -> dict[Value, Value]:
    """What takes the place of linears of the same rows by the same experts: the pieces of one,
    whose weights lie one below the other."""
    first = nodes[0]
    x, _, ids = first.inputs
    weight = _made(concat, tuple(n.inputs[1] for n in nodes), first, axis=1).outputs[0]
    whole = _made(expert_linear, (x, weight, ids), first).outputs[0]
    sizes = tuple(n.out_types[0].shape[-1] for n in nodes)
    pieces = _made(split, (whole,), first, sizes=sizes, axis=len(whole.shape) - 1).outputs
    return {n.outputs[0]: piece for n, piece in zip(nodes, pieces, strict=True)}


@dataclass(frozen=True)
class JoinExperts:
    """The rows of every expert are gathered once; the joined weights are folded."""

    name: ClassVar[str] = "experts"

    def run(self, graph: Graph, target: Target) -> Result:
        fired: list[Fired] = []
        missed: list[Missed] = []

        def changed(part: Graph) -> Graph:
            groups: dict[tuple[Value, Value, Size], list[Node]] = {}
            for node in part.nodes:
                if node.op is expert_linear:
                    x, weight, ids = node.inputs
                    groups.setdefault((x, ids, weight.shape[0]), []).append(node)
            new: dict[Value, Value] = {}
            for nodes in (g for g in groups.values() if len(g) > 1):
                stray = next((n for n in nodes if not is_made_of_params(n.inputs[1])), None)
                if stray:
                    reason = "the weight of an expert_linear of this x is not a Param"
                    missed.append(Missed(RULE, nodes[0].loc, nodes[0].scope, reason, stray.loc))
                else:
                    new |= joined(nodes)
                    fired.append(Fired(RULE, nodes[0].loc, nodes[0].scope))
            return substitute(part, new) if new else part

        new = changed(in_bodies(graph, changed))
        return Result(new, tuple(fired), tuple(missed))
