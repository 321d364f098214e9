"""The attentions and appends of a graph as nodes of its own, whatever they were written as."""

from __future__ import annotations

from graphdsl.ir import Graph, Node, Value
from graphdsl.ops.attention import attention
from graphdsl.ops.kv import kv_append
from graphdsl.passes import attention as attentions
from graphdsl.passes import softmax, views
from graphdsl.passes.cleanup import common_subexpressions, tidied
from graphdsl.passes.engine import apply_rules
from graphdsl.passes.rewrite import inline
from graphdsl.passes.roll import is_layer
from graphdsl.passes.rules import Rule

RULES: tuple[Rule, ...] = (*softmax.RULES, *attentions.RULES, *views.RULES)
"""Those that make an attention of plain maths."""
READERS = (attention, kv_append)


def surfaced(graph: Graph) -> Graph:
    """`graph` with all attentions and appends among its own nodes: Layers and Operations that hold
    one are opened, and an attention over a cache that is plain maths is recognised. Nothing else
    is changed."""
    while any(map(_holds, graph.nodes)):
        graph = inline(graph, _holds, keep_lines=is_layer)
    while _has_other_readers(graph):
        tidy, fired, _ = apply_rules(tidied(graph), RULES)
        hiding = _hiding(tidy)
        if not fired and not hiding:
            break
        graph = common_subexpressions(tidy) if fired else inline(tidy, hiding.__contains__)
    return graph


def _holds(node: Node) -> bool:
    """Whether an attention or append lies in the body of a node, however deep."""
    return node.body is not None and any(n.op in READERS or _holds(n) for n in node.body.nodes)


def _caches(graph: Graph) -> set[Value]:
    return {*graph.state, *(n.outputs[0] for n in graph.nodes if n.op is kv_append)}


def _has_other_readers(graph: Graph) -> bool:
    """Whether what is neither attention nor append reads a cache."""
    caches = _caches(graph)
    return any(v in caches for n in graph.nodes if n.op not in READERS for v in n.inputs)


def _hiding(graph: Graph) -> set[Node]:
    """The first Operations that what is made of a cache goes into, by which a pattern may be
    hidden. What rules have made is a part of one."""
    made = _caches(graph)
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op in READERS or not any(v in made for v in node.inputs):
            continue
        if node.body is not None and not node.origin:
            found.add(node)
        elif node.body is None:
            made.update(node.outputs)
    return found
