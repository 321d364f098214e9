"""One axis order for every KV state, written into the types that writer and reader share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from graphdsl.ir import Graph, Layout, Node, TensorType, Value
from graphdsl.ops.shape import reshape
from graphdsl.passes.base import Fired, Result
from graphdsl.passes.memory import effects_of
from graphdsl.passes.repeat import REPEAT, operands_of
from graphdsl.passes.rewrite import with_inputs

if TYPE_CHECKING:
    from graphdsl.backend import Target


@dataclass(frozen=True)
class KVLayout:
    """Sets the order of the axes of every KV state: the user's choice, or what the backend reads
    fastest."""

    name: ClassVar[str] = "kv_layout"
    order: str = field(default="", metadata={"choices": ("", "bsnd", "bnsd")})

    def run(self, graph: Graph, target: Target) -> Result:
        layout = Layout(self.order or target.kv_order)
        graph = with_plain_results(graph)
        changed = [v for v in graph.state if v.type.layout and v.type.layout != layout]
        if not changed:
            return Result(graph)
        types = [replace(v.type, layout=layout) if v in changed else v.type for v in graph.leaves]
        fired = tuple(Fired("KVLayout", None, v.name) for v in changed)
        return Result(retyped(graph, types), fired)


def with_plain_results(graph: Graph) -> Graph:
    """`graph` whose results, which have no layout, are copies of the caches that they name."""
    results = [reshape.apply((v,), {"shape": v.shape}, v.loc).outputs[0] if v.type.layout else v
               for v in graph.results]
    if all(a is b for a, b in zip(results, graph.results, strict=True)):
        return graph
    return replace(graph, outputs=(*results, *graph.new_state))


def retyped(graph: Graph, types: Sequence[TensorType]) -> Graph:
    """`graph` with leaves of these types; the layouts of whatever shares their memory follow."""
    leaves = [v if v.type == t else replace(v, type=t)
              for v, t in zip(graph.leaves, types, strict=True)]
    env = dict(zip(graph.leaves, leaves, strict=True))
    for node in graph.nodes:
        inputs = tuple(env[v] for v in node.inputs)
        if all(a is b for a, b in zip(inputs, node.inputs, strict=True)):
            env.update(zip(node.outputs, node.outputs, strict=True))
            continue
        env.update(zip(node.outputs, _retyped_node(node, inputs).outputs, strict=True))
    first, second = len(graph.inputs), len(graph.inputs) + len(graph.state)
    return replace(graph, inputs=tuple(leaves[:first]), state=tuple(leaves[first:second]),
                   params=tuple(leaves[second:]), outputs=tuple(env[v] for v in graph.outputs))


def _retyped_node(node: Node, inputs: tuple[Value, ...]) -> Node:
    if all(a.type == b.type for a, b in zip(inputs, node.inputs, strict=True)):
        return with_inputs(node, inputs)
    body, types = node.body, list(node.out_types)
    if body is not None:
        body = retyped(body, _body_types(node, inputs))
    if node.op is not REPEAT and body is not None:
        types = [v.type for v in body.outputs]
    elif node.op.kind != "view":
        for output, source in effects_of(node).shares.items():
            types[output] = replace(types[output], layout=inputs[source].type.layout)
    return replace(node, inputs=inputs, body=body, out_types=tuple(types))


def _body_types(node: Node, inputs: tuple[Value, ...]) -> list[TensorType]:
    types = [v.type for v in inputs]
    if node.op is not REPEAT:
        return types
    split = operands_of(node, types)
    return [*split.carried, *split.invariant, *split.state[0], *split.params[0]]
