"""The layouts of KV states, carried to all that shares their memory, and what is changed for them.

Ops of CACHES find the rows of a cache wherever they lie. What is paged gives them a block table as
one more operand; whoever else reads a cache that is no strided tensor gets a copy that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from graphdsl.errors import GraphError, Loc
from graphdsl.expr import Poly, product
from graphdsl.ir import DTYPES, Graph, Node, TensorType, Value
from graphdsl.layout import TABLE
from graphdsl.ops.kv import relayout
from graphdsl.passes.base import Fired
from graphdsl.passes.memory import effects_of
from graphdsl.passes.repeat import REPEAT, operands_of
from graphdsl.passes.rewrite import with_inputs

CACHES = {"attention": (1, 2), "kv_append": (0,), "rope_append": (6, 7),
          "norm_rope_append": (6, 7), "relayout": (0,)}
"""Ops that read a cache where it lies: which of their operands are caches."""


@dataclass
class CacheTypes:
    """The change of one graph: what was copied so far, and what there is to report."""

    fired: list[Fired] = field(default_factory=list)
    copies: dict[Value, Value] = field(default_factory=dict)

    def outputs(self, graph: Graph, leaves: Sequence[Value],
                table: Value | None) -> tuple[Value, ...]:
        """The outputs of `graph` with other leaves, the layouts of which follow to whatever shares
        their memory; paged ones are read by `table`. Raises GraphError for a reader that cannot
        have them."""
        env = dict(zip(graph.leaves, leaves, strict=True))
        for node in graph.nodes:
            inputs = tuple([env[v] for v in node.inputs])
            new = self._node(node, inputs, table)
            env.update(zip(node.outputs, new.outputs, strict=True))
        return tuple([env[v] for v in graph.outputs])

    def plain(self, value: Value, loc: Loc | None, scope: str, table: Value | None) -> Value:
        """A contiguous copy of a cache for a reader at `loc`, one for all readers."""
        layout = value.type.layout
        assert layout is not None
        if value in self.copies:
            return self.copies[value]
        name = value.name or "a cache"
        if layout.policy == "shift":
            raise GraphError(f"{name} is {value.type}, whose rows move with every append, and is "
                             "read by their numbers here", loc, "read it by attention, or give "
                             f"{_cache_at(value)} another policy: contiguous or paged")
        operands = (value, table) if layout.policy == "paged" and table is not None else (value,)
        made = relayout.apply(operands, {}, loc, scope).outputs[0]
        self.copies[value] = made
        bytes = product(made.shape) * DTYPES[made.dtype]
        text = f"{_text(bytes)} bytes from {layout}"
        self.fired.append(Fired("Relayout", loc, f"{scope}, {text}" if scope else text))
        return made

    def _node(self, node: Node, inputs: tuple[Value, ...], table: Value | None) -> Node:
        if all(v.type.layout is None for v in inputs):
            return _same(node, inputs)
        inside = node.body is not None and (node.op is REPEAT or _has_cache_ops(node.body))
        whole = node.name in CACHES
        reads = range(len(inputs)) if inside and not whole else CACHES.get(node.name, ())
        if node.name == "attention" and None in (inputs[1].type.layout, inputs[2].type.layout):
            reads = ()
        writes = effects_of(node).writes
        readable = []
        for i, value in enumerate(inputs):
            layout = value.type.layout
            if i in reads or layout is None or layout.is_strided:
                readable.append(value)
                continue
            if i in writes:
                raise GraphError(f"{node.name} writes into {value.type}", node.loc,
                                 "only kv_append can write into a cache of this layout")
            readable.append(self.plain(value, node.loc, node.scope, table))
        inputs = tuple(readable)
        if whole:
            return _cache_op(node, inputs, table)
        if inside:
            return self._with_body(node, inputs, table)
        return _follow(node, inputs)

    def _with_body(self, node: Node, inputs: tuple[Value, ...], table: Value | None) -> Node:
        """A node whose body reads the caches: it hands the block table on."""
        body = node.body
        assert body is not None
        types = _body_types(node, inputs)
        leaves = [_typed(v, t) for v, t in zip(body.leaves, types, strict=True)]
        own = Value(table.type, name=TABLE) if table is not None else None
        outputs = self.outputs(body, leaves, own)
        new = with_leaves(body, leaves, outputs)
        if own is not None and own in new.users:
            assert table is not None
            at = len(body.inputs)
            new = replace(new, inputs=(*new.inputs, own))
            inputs = (*inputs[:at], table, *inputs[at:])
        elif _is_same(body, new):
            return _same(node, inputs)
        out_types = [v.type for v in outputs]
        if node.op is REPEAT:
            carried = node.attr["carried"]
            out_types = out_types[:carried] + out_types[carried:] * node.attr["turns"]
        return replace(node, inputs=inputs, body=new, out_types=tuple(out_types))


def with_leaves(graph: Graph, leaves: Sequence[Value], outputs: tuple[Value, ...]) -> Graph:
    """`graph` with these leaves, in the order inputs, state, params, and these outputs."""
    first, second = len(graph.inputs), len(graph.inputs) + len(graph.state)
    return replace(graph, inputs=tuple(leaves[:first]), state=tuple(leaves[first:second]),
                   params=tuple(leaves[second:]), outputs=outputs)


def typed(leaves: Sequence[Value], types: Sequence[TensorType]) -> list[Value]:
    """Leaves of these types; those that have theirs stay."""
    return [_typed(v, t) for v, t in zip(leaves, types, strict=True)]


def _typed(leaf: Value, kind: TensorType) -> Value:
    return leaf if leaf.type == kind else replace(leaf, type=kind)


def _is_same(old: Graph, new: Graph) -> bool:
    pairs = zip((*old.leaves, *old.outputs), (*new.leaves, *new.outputs), strict=True)
    return all(a is b for a, b in pairs)


def _same(node: Node, inputs: tuple[Value, ...]) -> Node:
    if all(a is b for a, b in zip(inputs, node.inputs, strict=True)):
        return node
    return with_inputs(node, inputs)


def _follow(node: Node, inputs: tuple[Value, ...]) -> Node:
    """A node that reads its operands as strided tensors; what it overwrites keeps its layout."""
    types = list(node.out_types)
    if node.op.kind != "view":
        for output, source in effects_of(node).shares.items():
            types[output] = replace(types[output], layout=inputs[source].type.layout)
    if tuple(types) == node.out_types:
        return _same(node, inputs)
    return replace(node, inputs=inputs, out_types=tuple(types))


def _cache_op(node: Node, inputs: tuple[Value, ...], table: Value | None) -> Node:
    """An op of CACHES, with the block table as its last operand where a cache is paged."""
    attrs = dict(node.attr)
    if node.name == "attention":
        _check_attention(node, inputs)
    paged = any(v.type.layout and v.type.layout.policy == "paged" for v in inputs)
    if paged and table is not None and "table" not in node.op.present(len(inputs), attrs):
        inputs = (*inputs, table)
        if "given" in attrs:
            attrs["given"] = (*attrs["given"], "table")
    elif all(a is b for a, b in zip(inputs, node.inputs, strict=True)):
        return node
    return node.op.apply(inputs, attrs, node.loc, node.scope, node.origin)


def _check_attention(node: Node, inputs: tuple[Value, ...]) -> None:
    """Keys and values of one layout; where slots may be unmapped or lie by the length of the
    sequence, positions that say what is there."""
    k, v = inputs[1:3]
    if k.type.layout is None or v.type.layout is None:
        return
    if k.type.layout != v.type.layout:
        raise GraphError(f"attention: k is {k.type}, {_written(k)}, and v is {v.type}, "
                         f"{_written(v)}", node.loc, "one attention reads keys and values of one "
                         "layout")
    policy, given = k.type.layout.policy, node.attr["given"]
    if policy == "contiguous" or ("positions" in given and node.attr["causal"]):
        return
    lacks = "is not causal" if "positions" in given else "has no positions"
    reason = {"paged": "may read pages that have no block yet",
              "shift": "cannot tell where rows lie"}[policy]
    raise GraphError(f"attention reads {k.type} and {lacks}: it {reason}", node.loc,
                     "give it positions and causal=True, or the cache the policy contiguous")


def _written(value: Value) -> str:
    """Where a cache was last written, or made."""
    loc = value.loc or (value.type.layout.loc if value.type.layout else None)
    return f"{'written' if value.node else 'made'} at {loc}" if loc else "an input"


def _cache_at(value: Value) -> str:
    loc = value.type.layout.loc if value.type.layout else None
    return f"the KVCache at {loc}" if loc else "the cache"


def _has_cache_ops(body: Graph) -> bool:
    return any(n.name in CACHES or (n.body is not None and _has_cache_ops(n.body))
               for n in body.nodes)


def _body_types(node: Node, inputs: tuple[Value, ...]) -> list[TensorType]:
    types = [v.type for v in inputs]
    if node.op is not REPEAT:
        return types
    split = operands_of(node, types)
    state = split.state[0] if split.state else ()
    return [*split.carried, *split.invariant, *state, *split.params[0]]


def _text(size: Poly) -> str:
    """A number of bytes as a user would write it: `256*batch*slots`."""
    return " + ".join("*".join([str(k), *names]) for names, k in size.items)
