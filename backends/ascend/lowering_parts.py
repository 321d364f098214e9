"""A lowered graph in the parts that become one atb.Graph each: what comes before the layers, every
layer or the body of a repeat, and what comes after."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graphdsl.ir import Graph, Node, Value
from graphdsl.op import constant
from graphdsl.ops.attention import attention
from graphdsl.ops.kv import kv_append
from graphdsl.ops.position import rope
from graphdsl.ops.shape import reshape
from graphdsl.passes.memory import ordered
from graphdsl.passes.repeat import REPEAT, operands_of

from .angles import gathered, inside
from .lowering_graph import source_of
from .lowering_math import reads

LAYER = re.compile(r"((?:[A-Za-z_]\w*\.)*?[A-Za-z_]\w*\.\d+)(?:\.|$)")
"""The path of a layer in a list of layers, at the start of a scope."""

Resolve = Callable[[Value], Value]


@dataclass(frozen=True)
class Part:
    """Nodes in the order in which they run; a repeat is alone in its part."""

    name: str
    nodes: tuple[Node, ...]

    @property
    def repeat(self) -> Node | None:
        return next((n for n in self.nodes if n.op is REPEAT), None)


def needs(node: Node, resolve: Resolve = lambda value: value) -> tuple[Value, ...]:
    """The values that a node reads on the device, which has neither what the host prepares nor
    angles that are looked up."""
    if node.op is rope:
        halves = (v for v in node.inputs[1:] if not gathered(resolve(v)))
        return (node.inputs[0], *halves)
    if node.op is attention:
        return node.inputs[:3]
    if node.op is kv_append:
        return node.inputs[:2]
    return _repeat_needs(node) if node.op is REPEAT else reads(node)


def _repeat_needs(node: Node) -> tuple[Value, ...]:
    assert node.body is not None
    operands = operands_of(node, node.inputs)
    read = {v for n in live_nodes(node.body, inside(node))
            for v in map(source_of, needs(n, inside(node)))}
    leaves = node.body.inputs[len(operands.carried):]
    used = [v for leaf, v in zip(leaves, operands.invariant, strict=True) if leaf in read]
    return (*operands.carried, *used)


def live_nodes(graph: Graph, resolve: Resolve = lambda value: value) -> tuple[Node, ...]:
    """The nodes that become ATB operations, those that results and caches need, in an order in
    which they can run."""
    live: set[Node] = set()
    stack = [source_of(v).node for v in graph.outputs]
    while stack:
        node = stack.pop()
        if node is None or node in live:
            continue
        live.add(node)
        stack += [source_of(v).node for v in needs(node, resolve)]
    return tuple(n for n in ordered(graph) if n in live and n.op not in (reshape, constant))


def parts_of(graph: Graph) -> tuple[Part, ...]:
    """The parts, in the order in which they run. A graph without layers in it is a layer, before
    which there are angles alone."""
    nodes = live_nodes(graph)
    keys = {n: _layer(n) for n in nodes}
    names = list(dict.fromkeys(key for key in keys.values() if key is not None))
    if not names:
        before = _angles(nodes)
        return (Part("begin", tuple(n for n in nodes if n in before)),
                Part("", tuple(n for n in nodes if n not in before)))
    place = _places(nodes, {n: names.index(k) + 1 for n, k in keys.items() if k is not None},
                    len(names) + 1)
    titles = ["begin", *_titles(names), "end"]
    found = (Part(title, tuple(n for n in nodes if place[n] == i))
             for i, title in enumerate(titles))
    return tuple(found)


def _angles(nodes: Sequence[Node]) -> set[Node]:
    """The nodes that make angles which are not looked up in our tables."""
    found: set[Node] = set()
    for node in reversed(nodes):
        needed = needs(node)
        if node in found or node.op is rope:
            inputs = needed if node in found else needed[1:]
            found.update(n for v in inputs if (n := source_of(v).node) is not None)
    return found


def _layer(node: Node) -> str | Node | None:
    """What a node belongs to: a repeat itself, a layer of a list, or nothing."""
    if node.op is REPEAT:
        return node
    found = LAYER.match(node.scope)
    return found.group(1) if found else None


def _titles(keys: Sequence[str | Node]) -> list[str]:
    titles: list[str] = []
    for key in keys:
        base = key if isinstance(key, str) else key.scope.replace(".*", "") or "layers"
        title = base.replace(".", "_")
        titles.append(title if title not in titles else f"{title}_{len(titles) + 1}")
    return titles


def _places(nodes: Sequence[Node], own: dict[Node, int], end: int) -> dict[Node, int]:
    """The part of every node: no earlier than what it reads, and outside of layers as early as
    that where a layer reads it, at the end where none does."""
    leads: set[Node] = set()
    for node in reversed(nodes):
        if node in own or node in leads:
            leads.update(n for v in needs(node) if (n := source_of(v).node) is not None)
    place: dict[Node, int] = {}
    for node in nodes:
        sources = (source_of(v).node for v in needs(node))
        after = max((place[n] for n in sources if n is not None and n in place), default=0)
        if node in own:
            place[node] = max(own[node], after)
        else:
            place[node] = after if node in leads or after == 0 else end
    return place


__all__ = ["Part", "live_nodes", "parts_of"]
