"""The structural primitives that every pass is built from: rebuild, clone, inline, outline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from graphdsl.ir import Graph, Node, Value
from graphdsl.op import Op, constant


def with_inputs(node: Node, inputs: tuple[Value, ...]) -> Node:
    """`node` with other operands: what dataclasses.replace does, in a third of its time, for
    every rewrite moves hundreds of nodes."""
    return Node(node.op, inputs, node.attrs, node.out_types, node.body, node.loc, node.scope,
                node.origin)


def rebuild(graph: Graph, resolve: Callable[[Value], Value], **changes: Any) -> Graph:
    """`graph` with every value read through `resolve`; nodes whose inputs stay are shared."""
    done: dict[Node, Node] = {}
    outputs = [resolve(v) for v in changes.pop("outputs", graph.outputs)]
    stack = [v.node for v in outputs if v.node]
    while stack:
        node = stack[-1]
        if node in done:
            stack.pop()
            continue
        inputs = [resolve(v) for v in node.inputs]
        waiting = [v.node for v in inputs if v.node and v.node not in done]
        if waiting:
            stack += waiting
            continue
        new = tuple(_moved(v, done) for v in inputs)
        same = all(a is b for a, b in zip(new, node.inputs, strict=True))
        done[node] = node if same else with_inputs(node, new)
        stack.pop()
    return replace(graph, outputs=tuple(_moved(v, done) for v in outputs), **changes)


def _moved(value: Value, done: Mapping[Node, Node]) -> Value:
    return done[value.node].outputs[value.index] if value.node else value


def substitute(graph: Graph, new: Mapping[Value, Value], **changes: Any) -> Graph:
    """`graph` with some values replaced by others (chains of replacements are followed)."""
    def resolve(value: Value) -> Value:
        while value in new:
            value = new[value]
        return value
    return rebuild(graph, resolve, **changes)


def clone(body: Graph, arguments: Iterable[Value],
          copied: Callable[[Node, tuple[Value, ...]], Node] = with_inputs) -> tuple[Value, ...]:
    """The outputs of a copy of `body` whose leaves are `arguments`; `copied(node, inputs)` makes
    the copy of a node."""
    env = dict(zip(body.leaves, arguments, strict=True))
    for node in body.nodes:
        new = copied(node, tuple([env[v] for v in node.inputs]))
        env.update(zip(node.outputs, new.outputs, strict=True))
    return tuple(env[v] for v in body.outputs)


def inline(graph: Graph, wanted: Callable[[Node], bool], *,
           keep_lines: Callable[[Node], bool] = lambda node: False) -> Graph:
    """Every wanted node becomes a copy of its body, one level deep. The copies take the caller's
    line (unless `keep_lines`: a Layer's own lines say more) and grow its scope."""
    new: dict[Value, Value] = {}
    for node in graph.nodes:
        if node.body is not None and wanted(node):
            new.update(zip(node.outputs, _opened(node, keep_lines(node)), strict=True))
    return substitute(graph, new) if new else graph


def _opened(node: Node, keep_lines: bool) -> tuple[Value, ...]:
    assert node.body is not None

    own = node.scope if keep_lines else _joined(node.scope, f"{node.name}()")

    def copied(inner: Node, inputs: tuple[Value, ...]) -> Node:
        origin = node.origin
        if inner.origin:
            origin = tuple(dict.fromkeys((*origin, *inner.origin)))
        return Node(inner.op, inputs, inner.attrs, inner.out_types, inner.body,
                    inner.loc if keep_lines else node.loc, _joined(own, inner.scope), origin)

    return clone(node.body, node.inputs, copied)


def _joined(*scopes: str) -> str:
    return ".".join(s for s in scopes if s)


def outline(graph: Graph, groups: Sequence[Sequence[Node]], op: Op) -> Graph:
    """Every group becomes one node of `op` whose body is the group. A group must be convex: no
    path from it leaves and comes back. Constants are copied into the bodies that read them."""
    unit: dict[Node, int] = {n: i for i, nodes in enumerate(groups) for n in nodes}
    if not unit:
        return graph
    order = {n: i for i, n in enumerate(graph.nodes)}
    made: dict[Value, Value] = {}
    done: set[int | Node] = set()
    stack: list[int | Node] = [unit.get(v.node, v.node) for v in reversed(graph.outputs) if v.node]
    while stack:
        here = stack[-1]
        if here in done:
            stack.pop()
            continue
        nodes = sorted(groups[here], key=order.__getitem__) if isinstance(here, int) else [here]
        outside = _outside(nodes, keep_constants=not isinstance(here, int))
        waiting = {unit.get(v.node, v.node) for v in outside if v.node} - done
        if waiting:
            stack += sorted(waiting, key=lambda u: order[groups[u][0] if isinstance(u, int) else u])
            continue
        if isinstance(here, int):
            made.update(_outlined(graph, nodes, outside, op, made))
        else:
            new = with_inputs(here, tuple([made.get(v, v) for v in here.inputs]))
            made.update(zip(here.outputs, new.outputs, strict=True))
        done.add(here)
        stack.pop()
    return replace(graph, outputs=tuple(made.get(v, v) for v in graph.outputs))


def _outside(nodes: Sequence[Node], keep_constants: bool) -> list[Value]:
    inside = set(nodes)
    values = dict.fromkeys(v for n in nodes for v in n.inputs if v.node not in inside)
    return [v for v in values if keep_constants or not is_constant(v)]


def _outlined(graph: Graph, nodes: Sequence[Node], outside: Sequence[Value], op: Op,
              made: Mapping[Value, Value]) -> dict[Value, Value]:
    inside = set(nodes)
    leaves = tuple(Value(v.type, name=v.name) for v in outside)
    env: dict[Value, Value] = dict(zip(outside, leaves, strict=True))
    for node in nodes:
        inner = with_inputs(node, tuple([env.get(v, v) for v in node.inputs]))
        env.update(zip(node.outputs, inner.outputs, strict=True))
    outputs = [v for n in nodes for v in n.outputs
               if any(u not in inside for u in graph.users.get(v, []))]
    body = Graph(op.name, leaves, (), (), tuple(env[v] for v in outputs))
    new = Node(op, tuple(made.get(v, v) for v in outside), (), tuple(v.type for v in outputs), body,
               nodes[-1].loc, _scopes(nodes), tuple(dict.fromkeys(o for n in nodes
                                                                    for o in n.origin)))
    return dict(zip(outputs, new.outputs, strict=True))


def _scopes(nodes: Sequence[Node]) -> str:
    """The scopes of a group, without those that lie within another of them."""
    found = dict.fromkeys(_joined(n.scope, "" if n.scope.endswith("()") else n.name)
                          for n in nodes)
    outer = [s.split(".") for s in found if not any(s.startswith(f"{o}.") for o in found)]
    shared = 0
    while all(len(s) > shared + 1 and s[shared] == outer[0][shared] for s in outer):
        shared += 1
    return _joined(*outer[0][:shared], "+".join(".".join(s[shared:]) for s in outer))


def is_constant(value: Value) -> bool:
    return value.node is not None and value.node.op is constant
