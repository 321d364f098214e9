"""Work on params alone is done once, when weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from graphdsl.ir import Affine, Dim, Graph, Node, Value, terms
from graphdsl.op import constant
from graphdsl.passes.base import Fired, Result, Target
from graphdsl.passes.cleanup import common_subexpressions
from graphdsl.passes.repeat import REPEAT, make_repeat, operands_of
from graphdsl.passes.rewrite import clone, substitute


@dataclass(frozen=True)
class Hoist:
    """Work in a repeat's body that is the same in every turn leaves it; work on the params of a
    turn leaves as one copy a turn, so that it can be folded."""

    name: ClassVar[str] = "hoist"

    def run(self, graph: Graph, target: Target) -> Result:
        new: dict[Value, Value] = {}
        fired: list[Fired] = []
        for node in graph.nodes:
            if node.op is REPEAT:
                hoisted = _hoisted(node)
                new.update(zip(node.outputs, hoisted.outputs, strict=True))
                if hoisted is not node:
                    fired.append(Fired("Hoist", node.loc, node.scope))
        if not fired:
            return Result(graph)
        # What has left a body may be there already: angles of the Layers that are not rolled.
        return Result(common_subexpressions(substitute(graph, new)), tuple(fired))


def _hoisted(node: Node) -> Node:
    """A repeat without the work that needs nothing of a turn but its params."""
    assert node.body is not None
    body, operands = node.body, operands_of(node, node.inputs)
    invariant = body.inputs[len(operands.carried):]
    once_made = _work(body, set(invariant))
    _keep_views(body, once_made)
    same = list(_ends(body, once_made))
    own_made = {n: None for n in _fixed_work(body) if n not in once_made}
    own = list(_ends(body, own_made))
    if not same and not own:
        return node
    leaves = {v: Value(v.type, name=f"hoisted.{i}") for i, v in enumerate(same)}
    leaves |= {v: Value(v.type, name=f"hoisted.{len(same) + i}", kind="param")
               for i, v in enumerate(own)}
    inner = substitute(body, leaves)
    used = [i for i, p in enumerate(body.params) if p in inner.users]
    inner = replace(inner, inputs=(*body.inputs, *(leaves[v] for v in same)),
                    params=(*(body.params[i] for i in used), *(leaves[v] for v in own)))
    once = _copies(body, same, node.inputs, 0, node)
    rows = []
    for turn, row in enumerate(operands.params):
        made = _copies(body, own, node.inputs, turn, node)
        rows.append((*(row[i] for i in used), *made))
    changed = replace(operands, invariant=(*operands.invariant, *once), params=tuple(rows))
    return make_repeat(inner, changed, node)


def _copies(body: Graph, outputs: list[Value], inputs: tuple[Value, ...], turn: int,
            node: Node) -> tuple[Value, ...]:
    """The values that `outputs` of the body have in a turn, computed outside of the repeat."""
    split = operands_of(node, inputs)
    state = split.state[turn] if split.state else ()
    arguments = (*split.carried, *split.invariant, *state, *split.params[turn])
    return clone(replace(body, outputs=tuple(outputs)), arguments)


def _work(graph: Graph, known: set[Value]) -> dict[Node, None]:
    """Nodes that read nothing but `known` leaves, constants and each other."""
    found: dict[Node, None] = {}
    for node in graph.nodes:
        fixed = not node.op.aliases and node.op is not constant and node.op is not REPEAT
        reads = [v for v in node.inputs if v.node is None or v.node.op is not constant]
        if fixed and (reads or not node.inputs) and all(v in known or v.node in found
                                                        for v in reads):
            found[node] = None
    return found


def _keep_views(graph: Graph, work: dict[Node, None]) -> None:
    """Takes views out of `work` where they are read outside of it: a view costs nothing."""
    for node in reversed(list(work)):
        outside = any(u not in work for v in node.outputs for u in graph.users.get(v, []))
        if node.op.kind == "view" and outside:
            del work[node]


def _ends(graph: Graph, work: dict[Node, None]) -> Iterator[Value]:
    """The values of `work` that something else reads."""
    for node in work:
        for value in node.outputs:
            if any(user not in work for user in graph.users.get(value, [])):
                yield value


@dataclass(frozen=True)
class Fold:
    """Params-only work becomes new params, each with the recipe that makes it."""

    name: ClassVar[str] = "fold"

    def run(self, graph: Graph, target: Target) -> Result:
        work = _fixed_work(graph)
        recipes: dict[str, Graph] = {}
        new: dict[Value, Value] = {}
        fired: list[Fired] = []
        taken = {v.name for v in graph.leaves}
        for value in _ends(graph, work):
            assert value.node is not None
            name = _free_name(value.node.name, taken)
            taken.add(name)
            new[value] = Value(value.type, name=name, kind="param")
            recipes[name] = _recipe(graph, name, value)
            fired.append(Fired("Fold", value.node.loc, value.node.scope))
        if not new:
            return Result(graph)
        folded = substitute(graph, new)
        kept = tuple(p for p in graph.params if p in folded.users)
        made = tuple(p for p in new.values() if p in folded.users)
        return Result(replace(folded, params=kept + made), tuple(fired), (),
                      {p.name: recipes[p.name] for p in made})


def _fixed_work(graph: Graph) -> dict[Node, None]:
    """The work on params alone whose sizes and numbers are known when weights are loaded."""
    params = set(graph.params)
    kept: dict[Node, None] = {}
    for node in _work(graph, params):
        if not _is_symbolic(node) and all(v in params or v.node in kept
                                          or (v.node and v.node.op is constant)
                                          for v in node.inputs):
            kept[node] = None
    return kept


def _recipe(graph: Graph, name: str, value: Value) -> Graph:
    alone = replace(graph, name=name, inputs=(), state=(), outputs=(value,))
    return replace(alone, params=tuple(p for p in graph.params if p in alone.users))


def _free_name(base: str, taken: set[str]) -> str:
    number = 0
    while f"{base}.{number}" in taken:
        number += 1
    return f"{base}.{number}"


def _is_symbolic(node: Node) -> bool:
    """Whether a node's shape or attributes depend on a dim."""
    if any(terms(size) for t in node.out_types for size in t.shape):
        return True
    constants = [v.node for v in node.inputs if v.node and v.node.op is constant]
    return any(_has_dim(value) for n in (node, *constants) for _, value in n.attrs)


def _has_dim(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(map(_has_dim, value))
    return isinstance(value, Dim | Affine)
