"""Norms at the head of a repeat's body move to the end of the turn before.

    turn i:   h = norm(x, w[i]); ...; return x2 + r
    becomes   h is carried too;  ...; y = x2 + r; return y, norm(y, w[i + 1])

The first norm is made before the repeat. The last turn makes the norm that follows the repeat, or,
where that is another one, a norm that nobody reads. The rules that fuse a sum with the norm that
follows it then fire across the border of two Layers, and all turns still share their code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from graphdsl.ir import Graph, Node, Value
from graphdsl.op import Op
from graphdsl.ops.math import add
from graphdsl.ops.norm import layer_norm, rms_norm
from graphdsl.ops.shape import take_rows
from graphdsl.passes import norm as norm_rules
from graphdsl.passes.base import Fired, Missed, Result, Target, in_bodies
from graphdsl.passes.cleanup import tidied
from graphdsl.passes.engine import apply_rules
from graphdsl.passes.match import NoMatch
from graphdsl.passes.repeat import REPEAT, Operands, make_repeat, operands_of
from graphdsl.passes.rewrite import clone, substitute, with_inputs
from graphdsl.passes.structure import Structures

RULE = "RotateRepeat"

FUSED = {rms_norm: "add_rms_norm", layer_norm: "add_layer_norm"}
"""The Operation that a norm becomes a part of, at the end of a turn."""


@dataclass(frozen=True)
class _Head:
    """The norm that a body begins with, the carried value that it reads, and what its weights are
    made of: a graph of the turn's params."""

    norm: Node
    index: int
    weights: Graph


def found_head(body: Graph, carried: int, norms: frozenset[Op]) -> _Head | None:
    """The norm that can move; None if the body begins with none. Raises NoMatch where one of
    `norms` reads a carried value and has to stay."""
    for index, value in enumerate(body.inputs[:carried]):
        readers = [u for u in body.users.get(value, []) if u and u.op in norms
                   and u.inputs[0] is value]
        if not readers:
            continue
        if len(readers) > 1:
            raise NoMatch(f"{len(readers)} norms read {value.name}", readers[1].outputs[0])
        _check_sum(body.outputs[index])
        weights = weights_of(body, readers[0])
        if weights is None:
            raise NoMatch("its weight is not made of the Layer's Params", readers[0].outputs[0])
        return _Head(readers[0], index, weights)
    return None


def _check_sum(result: Value) -> None:
    """What is carried on has to be a sum, or no rule would fire across the border."""
    made = result.node
    if made is None or made.op is not add or any(v.type != result.type for v in made.inputs):
        what = f"made by {made.name}" if made else f"{result.name} itself"
        raise NoMatch(f"what the Layer returns is {what}, wanted a sum of two values of its shape",
                      result)


def weights_of(graph: Graph, norm: Node) -> Graph | None:
    """The weights of a norm as a graph of params; None where they depend on more."""
    cone = Graph("weights", (), (), (), norm.inputs[1:])
    read = dict.fromkeys(v for v in (*norm.inputs[1:], *(v for n in cone.nodes for v in n.inputs))
                         if v.node is None)
    known = set(graph.params)
    return replace(cone, params=tuple(read)) if known.issuperset(read) else None


@dataclass(frozen=True)
class _Rotation:
    """One repeat and the norm at the head of its body."""

    graph: Graph
    node: Node
    head: _Head

    @property
    def body(self) -> Graph:
        assert self.node.body is not None
        return self.node.body

    def norm(self, x: Value, weights: Graph, params: Sequence[Value]) -> Value:
        """The head's norm of another value, with weights made of other params."""
        return with_inputs(self.head.norm, (x, *clone(weights, params))).outputs[0]

    def turned(self) -> Graph:
        """The body with the norm at its end, of the weights of the next turn."""
        body, head, carried = self.body, self.head, self.node.attr["carried"]
        normed = Value(head.norm.out_types[0], name="normed")
        inner = substitute(body, {head.norm.outputs[0]: normed})
        following = tuple(replace(p, name=f"next.{p.name}") for p in head.weights.params)
        last = self.norm(inner.outputs[head.index], head.weights, following)
        outputs = (*inner.outputs[:carried], last, *inner.outputs[carried:])
        own = tuple(p for p in body.params if p in inner.users)
        return replace(inner, inputs=(*body.inputs[:carried], normed, *body.inputs[carried:]),
                       params=(*own, *following), outputs=outputs)

    def operands(self, turned: Graph, last: Sequence[Value]) -> Operands[Value]:
        """Of the turned repeat; `last` are the params of the norm at its end."""
        old = operands_of(self.node, self.node.inputs)
        place = {p: i for i, p in enumerate(self.body.params)}
        weights = [tuple(row[place[p]] for p in self.head.weights.params) for row in old.params]
        first = self.norm(old.carried[self.head.index], self.head.weights, weights[0])
        rows = tuple((*(row[place[p]] for p in turned.params if p in place), *following)
                     for row, following in zip(old.params, [*weights[1:], tuple(last)],
                                               strict=True))
        return replace(old, carried=(*old.carried, first), params=rows)

    def follower(self) -> tuple[Node, Graph] | None:
        """The norm of the repeat's result that the last turn can make, and its weights. Choosing
        rows comes after a norm of rows as well as before it."""
        result = self.node.outputs[self.head.index]
        chosen = [u.outputs[0] for u in self.graph.users.get(result, [])
                  if u and u.op is take_rows and u.inputs[0] is result]
        structures = Structures()
        for value in (result, *chosen):
            for user in self.graph.users.get(value, []):
                if (user is None or user.op is not self.head.norm.op or user.inputs[0] is not value
                        or user.attrs != self.head.norm.attrs):
                    continue
                weights = weights_of(self.graph, user)
                if weights and structures.number(weights) == structures.number(self.head.weights):
                    return user, weights
        return None

    def replaced(self) -> dict[Value, Value]:
        """What takes the place of the repeat's results, and of the norm after it."""
        follower, turned = self.follower(), self.turned()
        old = operands_of(self.node, self.node.inputs)
        place = {p: i for i, p in enumerate(self.body.params)}
        unread = [old.params[0][place[p]] for p in self.head.weights.params]
        last = follower[1].params if follower else unread
        made = make_repeat(turned, self.operands(turned, last), self.node)
        carried = self.node.attr["carried"]
        kept = (*made.outputs[:carried], *made.outputs[carried + 1:])
        new = dict(zip(self.node.outputs, kept, strict=True))
        if follower:
            chosen = follower[0].inputs[0].node
            normed = made.outputs[carried]
            if chosen is not None and chosen is not self.node:
                normed = with_inputs(chosen, (normed, *chosen.inputs[1:])).outputs[0]
            new[follower[0].outputs[0]] = normed
        return new


@dataclass(frozen=True)
class Rotate:
    """For backends that have a sum and the norm after it as one Operation. Elsewhere nothing
    moves: where loops and matmuls are fused, the sum is a matmul's epilogue and the norm the next
    one's prologue, in a Layer and across its border alike, and a second carried value would only
    cost memory."""

    name: ClassVar[str] = "rotate"

    def run(self, graph: Graph, target: Target) -> Result:
        norms = frozenset(norm for norm, fused in FUSED.items() if fused in target.takes)
        if not norms or not any(n.op is REPEAT for n in graph.nodes):
            return Result(graph)
        graph, fired = recognised(graph)
        missed: list[Missed] = []
        new: dict[Value, Value] = {}
        for node in [n for n in graph.nodes if n.op is REPEAT]:
            assert node.body is not None
            try:
                head = found_head(node.body, node.attr["carried"], norms)
            except NoMatch as failure:
                at = failure.at.loc if failure.at is not None else None
                missed.append(Missed(RULE, node.loc, node.scope, failure.reason, at))
                continue
            if head is not None:
                new |= _Rotation(graph, node, head).replaced()
                fired.append(Fired(RULE, head.norm.loc, head.norm.scope))
        return Result(substitute(graph, new) if new else graph, tuple(fired), tuple(missed))


def recognised(graph: Graph) -> tuple[Graph, list[Fired]]:
    """`graph` and the bodies of its repeats after the rules for norms: one may be written as its
    maths, or twice."""
    fired: list[Fired] = []

    def changed(part: Graph) -> Graph:
        new, found, _ = apply_rules(tidied(part), norm_rules.RULES)
        fired.extend(found)
        return new

    return changed(in_bodies(graph, changed)), fired
