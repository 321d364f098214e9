"""Which values share memory, and an order of the nodes in which no old state is read too late.

State is functional in the graph, but a kernel may overwrite the memory of an operand
(`kv_append`). Whoever reads the old value, through views too, has to come before that kernel.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from graphdsl.errors import GraphError
from graphdsl.ir import Graph, Node, Value
from graphdsl.passes.base import Result, Target
from graphdsl.passes.repeat import REPEAT, operands_of


@dataclass(frozen=True)
class Effects:
    """What a node does to memory: `shares` maps an output to the input whose memory it is,
    `writes` are the inputs that the node overwrites."""

    shares: dict[int, int]
    writes: frozenset[int]


NO_EFFECTS = Effects({}, frozenset())


def effects_of(node: Node) -> Effects:
    """The effects of a kernel as it declares them, of an Operation as its body has them."""
    if node.body is None:
        if node.op.kind == "view":
            return Effects(dict.fromkeys(range(len(node.out_types)), 0), frozenset())
        if not node.op.aliases:
            return NO_EFFECTS
        return Effects(dict(node.op.aliases), frozenset(i for _, i in node.op.aliases))
    inner = _body_effects(node.body)
    if node.op is not REPEAT:
        return inner
    return _repeat_effects(node, inner)


def _body_effects(body: Graph) -> Effects:
    position = {leaf: i for i, leaf in enumerate(body.leaves)}
    home: dict[Value, int] = dict(position)
    writes: set[int] = set()
    for node in body.nodes:
        effects = effects_of(node)
        for output, source in effects.shares.items():
            if node.inputs[source] in home:
                home[node.outputs[output]] = home[node.inputs[source]]
        writes |= {home[node.inputs[i]] for i in effects.writes if node.inputs[i] in home}
    shares = {o: home[v] for o, v in enumerate(body.outputs) if v in home}
    return Effects(shares, frozenset(writes))


def _repeat_effects(node: Node, inner: Effects) -> Effects:
    """State that the body overwrites is overwritten in every turn."""
    assert node.body is not None
    rows = operands_of(node, range(len(node.inputs))).state
    carried, width = node.attr["carried"], len(node.body.state)
    first = len(node.body.inputs)
    shares, writes = {}, set()
    for turn, row in enumerate(rows):
        for output, leaf in inner.shares.items():
            if output >= carried and first <= leaf < first + width:
                shares[output + turn * width] = row[leaf - first]
        writes |= {row[leaf - first] for leaf in inner.writes if first <= leaf < first + width}
    return Effects(shares, frozenset(writes))


def order_edges(graph: Graph) -> dict[Node, tuple[Node, ...]]:
    """For every node that overwrites memory, the nodes that have to come before it.

    Raises GraphError where an old value is an output, or what is overwritten is not state.
    """
    effects = {n: e for n in graph.nodes if (e := effects_of(n)).shares or e.writes}
    edges: dict[Node, tuple[Node, ...]] = {}
    for writer, effect in effects.items():
        readers: dict[Node, None] = {}
        for index in sorted(effect.writes):
            origin = _origin(writer.inputs[index], effects)
            _check_overwritten(writer, origin)
            for reader in _readers(graph, origin, effects):
                if reader is None:
                    raise _too_late(writer, origin, "as an output")
                readers[reader] = None
        readers.pop(writer, None)
        if effect.writes:
            edges[writer] = tuple(readers)
    return edges


def _origin(value: Value, effects: dict[Node, Effects]) -> Value:
    """The value of which `value` is a view."""
    while value.node in effects:
        effect = effects[value.node]
        source = effect.shares.get(value.index)
        if source is None or source in effect.writes:
            break
        value = value.node.inputs[source]
    return value


def _readers(graph: Graph, origin: Value, effects: dict[Node, Effects]) -> Iterator[Node | None]:
    """The users of a value and of its views; a view alone reads nothing."""
    views = [origin]
    while views:
        value = views.pop()
        for user in graph.users.get(value, []):
            if user is None or user not in effects:
                yield user
                continue
            effect = effects[user]
            outputs = [o for o, i in effect.shares.items()
                       if user.inputs[i] is value and i not in effect.writes]
            views += [user.outputs[o] for o in outputs]
            if not outputs or user.body is not None:
                yield user


def _check_overwritten(writer: Node, origin: Value) -> None:
    if origin.node is None and origin.kind == "param":
        raise GraphError(f"{writer.name} would overwrite the param {origin.name}", writer.loc,
                         "append to a KVCache of the layer")


def _too_late(writer: Node, origin: Value, where: str) -> GraphError:
    name = origin.name or "its operand"
    return GraphError(f"{writer.name}: the old value of {name} is read later {where}",
                      writer.loc, f"use the value that {writer.name} returns")


def ordered(graph: Graph) -> tuple[Node, ...]:
    """The nodes in an order in which they can run one after another, depth first.

    Raises GraphError where a state's old value is read after the node that overwrites it.
    """
    edges = order_edges(graph)
    if not edges:
        return graph.nodes
    done: dict[Node, None] = {}
    path: dict[Node, None] = {}
    stack = [v.node for v in reversed(graph.outputs) if v.node]
    while stack:
        node = stack[-1]
        if node in done or node in path:
            stack.pop()
            if path.pop(node, 0) is None:
                done[node] = None
            continue
        path[node] = None
        before = [*edges.get(node, ()), *(v.node for v in node.inputs if v.node)]
        _check_path(graph, path, before, edges)
        stack += [n for n in reversed(before) if n not in done]
    return tuple(done)


def _check_path(graph: Graph, path: dict[Node, None], before: list[Node],
                edges: dict[Node, tuple[Node, ...]]) -> None:
    """Refuses a node that has to come before something that it needs itself."""
    closing = next((n for n in before if n in path), None)
    if closing is None:
        return
    nodes = list(path)
    cycle = [*nodes[nodes.index(closing):], closing]
    for writer, reader in itertools.pairwise(cycle):
        if reader in edges.get(writer, ()):
            effects = {n: effects_of(n) for n in graph.nodes}
            origins = [_origin(writer.inputs[i], effects) for i in sorted(effects[writer].writes)]
            origin = next(v for v in origins if reader in _readers(graph, v, effects))
            raise _too_late(writer, origin, f"at {reader.loc} ({reader.name})")
    raise AssertionError(f"{graph.name}: {closing.name} depends on itself")


@dataclass(frozen=True)
class CheckMemory:
    """Refuses a graph that reads state after it was overwritten."""

    name: ClassVar[str] = "memory"

    def run(self, graph: Graph, target: Target) -> Result:
        check_memory(graph)
        return Result(graph)


def check_memory(graph: Graph) -> None:
    """Raises GraphError where no order of the nodes is right, here or in a repeat's body."""
    ordered(graph)
    for node in graph.nodes:
        if node.op is REPEAT and node.body is not None:
            check_memory(node.body)
