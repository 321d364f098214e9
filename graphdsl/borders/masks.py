"""A graph whose attention takes a mask as well, for callers that say what is seen by a tensor."""

from __future__ import annotations

from graphdsl.errors import GraphError
from graphdsl.ir import Dim, Graph, Node, TensorType, Value, terms
from graphdsl.ops import attention
from graphdsl.passes.rewrite import inline, substitute
from graphdsl.passes.roll import is_layer

MASK, KEYS = "mask", Dim("keys")


def with_mask(graph: Graph, kind: str) -> Graph:
    """`graph` with a last input `mask[batch, 1, tokens, keys]` that every causal attention with
    positions takes besides.

    `kind` is its dtype: "bool" (True: seen), or "f32" or the dtype of the queries, which is added
    to the scores. Keys that the mask does not reach are unseen, and what it says beyond the slots
    is ignored. Layers and Operations in whose bodies such an attention lies are opened, so that a
    Model with a mask is not rolled into turns of one Layer.

    Raises GraphError for another dtype, for attention that has a mask of its own, and where there
    is no such attention, or several for different sequences.
    """
    graph = _opened(graph)
    found = [node for node in graph.nodes if _is_causal(node)]
    if not found:
        raise GraphError(f"{graph.name}: no causal attention with positions takes a mask",
                         hint="call attention(q, k, v, positions) in forward")
    mask = _mask(graph, found, kind)
    new = {node.outputs[0]: _masked(node, mask) for node in found}
    return substitute(graph, new, inputs=(*graph.inputs, mask))


def _is_causal(node: Node) -> bool:
    return node.op is attention and node.attr["causal"] and "positions" in node.attr["given"]


def _holds(node: Node) -> bool:
    """Whether such an attention lies in the body of a node, however deep."""
    return node.body is not None and any(_is_causal(n) or _holds(n) for n in node.body.nodes)


def _opened(graph: Graph) -> Graph:
    """`graph` with all such attentions among its own nodes."""
    while any(_holds(node) for node in graph.nodes):
        graph = inline(graph, _holds, keep_lines=is_layer)
    return graph


def _mask(graph: Graph, found: list[Node], kind: str) -> Value:
    """The new input. Raises GraphError where there cannot be one for all of `found`."""
    first = found[0]
    sizes, dtype = first.inputs[0].shape[:2], first.inputs[0].dtype
    kinds = tuple(dict.fromkeys(("bool", "f32", dtype)))
    if kind not in kinds:
        raise GraphError(f"{graph.name}: no mask of {kind!r}", first.loc,
                         f"wanted: {', '.join(kinds)}")
    for node in found:
        if "mask" in node.attr["given"]:
            raise GraphError(f"{graph.name}: attention has a mask already", node.loc,
                             "leave the mask to the caller, or build the layer as it is")
        if node.inputs[0].shape[:2] != sizes:
            raise GraphError(f"{graph.name}: q is {node.inputs[0].type}, and another attention, at "
                             f"{first.loc}, has {first.inputs[0].type}: one mask does not fit both",
                             node.loc, "batch and tokens have to be the same")
    if any(leaf.name == MASK for leaf in graph.leaves):
        raise GraphError(f"{graph.name}: a leaf of it is called {MASK} already", first.loc,
                         "rename it")
    if any(dim.name == KEYS.name for leaf in graph.leaves for s in leaf.shape for dim in terms(s)):
        raise GraphError(f"{graph.name}: a size of it is called {KEYS} already", first.loc,
                         "rename it: that is what the keys of the mask are called")
    return Value(TensorType((sizes[0], 1, sizes[1], KEYS), kind), name=MASK)


def _masked(node: Node, mask: Value) -> Value:
    """The rows of `node` with a mask."""
    names = node.op.present(len(node.inputs), node.attr)
    operands = dict(zip(names, node.inputs, strict=True)) | {MASK: mask}
    order = [name for name in node.op.parameters.operands if name in operands]
    given = tuple(name for name in order if name in node.op.parameters.optional)
    new = node.op.apply(tuple(operands[name] for name in order), node.attr | {"given": given},
                        node.loc, node.scope, node.origin)
    return new.outputs[0]
