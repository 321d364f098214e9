"""Rope, what is written to KV caches, and attention: ATB has q and k, or k and v, in one operation,
and what it is depends on the phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from graphdsl.errors import GraphError
from graphdsl.ir import Node, Value
from graphdsl.ops.attention import attention
from graphdsl.ops.kv import kv_append
from graphdsl.ops.position import rope

from .atb import PAGES, QUERIES, ROWS, SEQUENCES, SLOTS, TOKENS, Enum, Field, Tensor
from .lowering_graph import Builder, Seen, Shape, source_of

MASK_SIZE = 128
"""Rows and columns of the compressed mask."""
NZ_MASK: Shape = (1, 8, 128, 16)

Operands = Mapping[str, Value]


def operands_of(node: Node) -> Operands:
    """The operands of a node by name."""
    return dict(zip(node.op.present(len(node.inputs), node.attr), node.inputs, strict=True))


@dataclass(frozen=True)
class Pairs:
    """Nodes that are one ATB operation, each emitted where the later one stands."""

    ropes: Mapping[Node, Node]
    """Of the later of two ropes the earlier."""
    appends: Mapping[Node, tuple[Node, Node]]
    """Of the later of two appends those of k and of v."""
    waiting: frozenset[Node]
    """The earlier ones."""


def pairs_of(nodes: Sequence[Node]) -> Pairs:
    """The pairs among nodes in the order in which they run."""
    place = {node: i for i, node in enumerate(nodes)}
    appends: dict[Node, tuple[Node, Node]] = {}
    for node in nodes:
        if node.op is not attention:
            continue
        k, v = (source_of(x).node for x in node.inputs[1:3])
        if k in place and v in place and k and v and {k.op, v.op} == {kv_append}:
            appends[max(k, v, key=lambda n: place[n])] = (k, v)
    joined = dict(_rope_pairs(nodes, place))
    first = [min(pair, key=lambda n: place[n]) for pair in appends.values()]
    return Pairs(joined, appends, frozenset((*joined.values(), *first)))


def _rope_pairs(nodes: Sequence[Node], place: Mapping[Node, int]) -> Iterator[tuple[Node, Node]]:
    """Two ropes by the same angles, where nothing between them reads the first."""
    read_at: dict[Node, int] = {}
    for i, node in enumerate(nodes):
        for value in node.inputs:
            if (made := source_of(value).node) is not None:
                read_at.setdefault(made, i)
    taken: set[Node] = set()
    for i, first in enumerate(nodes):
        if first.op is not rope or first in taken:
            continue
        until = read_at.get(first, len(nodes))
        second = next((n for n in nodes[i + 1:until]
                       if n not in taken and _is_partner(first, n)), None)
        if second is not None:
            taken.update((first, second))
            yield second, first


def _is_partner(a: Node, b: Node) -> bool:
    same = b.op is rope and a.inputs[1:] == b.inputs[1:] and a.attrs == b.attrs
    if not same or a.inputs[0].shape[3] != b.inputs[0].shape[3]:
        return False
    heads = sorted(_heads(n.inputs[0]) for n in (a, b))
    return heads[1] % heads[0] == 0


def _heads(x: Value) -> int:
    heads = x.shape[2]
    assert isinstance(heads, int)
    return heads


def _dim(x: Value) -> int:
    dim = x.shape[3]
    assert isinstance(dim, int)
    return dim


def lower_rope(b: Builder, node: Node, first: Node | None, angles: Sequence[Value]) -> None:
    """Rope of one value or of two, the wider of them as q. Channels beyond those that are turned
    are cut off before and joined after, for ATB turns whole heads. `angles` are of full width."""
    found = sorted((n for n in (first, node) if n), key=lambda n: -_heads(n.inputs[0]))
    width = angles[0].shape[-1]
    assert isinstance(width, int)
    coefficient = width if node.attr["interleaved"] else 2
    names = ("q", "k")
    parts = [_turned_part(b, n, width, name) for n, name in zip(found, names, strict=False)]
    seen = [turned for turned, _ in parts]
    whole = len(parts) == 1 or parts[0][1] is None
    outputs = [b.new(f"rope_{name}" if whole else f"turned_{name}", s.shape, s.tensor.dtype)
               for s, name in zip((seen * 2)[:2], names, strict=True)]
    lengths = b.prepared("lengths", (SEQUENCES,), host=True)
    b.emit("Rope", {"rotaryCoeff": coefficient},
           [*(seen * 2)[:2], *(b.matrix(angle) for angle in angles), lengths], outputs,
           found[0])
    for each, (turned, rest), output, name in zip(found, parts, outputs, names, strict=False):
        b.made[each.outputs[0]] = (output if rest is None else
                                   _joined(b, each, width, Seen(output, turned.shape), rest, name))


def _turned_part(b: Builder, node: Node, width: int, name: str) -> tuple[Seen, Tensor | None]:
    """The channels that are turned, as ATB's Rope sees them, and the others if there are any."""
    x = node.inputs[0]
    dim, heads = _dim(x), _heads(x)
    if dim == width:
        return b.matrix(x), None
    turned, rest = b.split(b.matrix(x, dim), (width, dim - width),
                           (f"turning_{name}", f"passing_{name}"), node)
    rows = b.matrix(x).shape[0]
    return Seen(turned, (rows, heads * width)), rest


def _joined(b: Builder, node: Node, width: int, turned: Seen, rest: Tensor, name: str) -> Tensor:
    rows, columns = rest.shape
    assert isinstance(columns, int)
    y = node.outputs[0]
    out = b.output(y, (rows, width + columns), f"rope_{name}")
    b.emit("Concat", {"concatDim": 1}, [Seen(turned.tensor, (rows, width)), Seen(rest, rest.shape)],
           [out], node)
    return out


def lower_append(b: Builder, k: Node, v: Node) -> None:
    """New rows of k and v into their caches; FA writes them itself."""
    caches = [b.tensor(source_of(n.inputs[0])) for n in (k, v)]
    for node, cache in zip((k, v), caches, strict=True):
        b.made[node.outputs[0]] = cache
    if b.setting.phase == "contiguous":
        return
    layout = k.inputs[0].type.layout
    assert layout is not None
    given = operands_of(k)
    slots = b.prepared("slots", (ROWS,), (given["positions"], given["table"]), block=layout.block)
    fields: dict[str, Field] = {"kvCacheCfg": Enum("K_CACHE_V_CACHE")}
    rows = [_by_heads(b, n.inputs[1]) for n in (k, v)]
    b.emit("ReshapeAndCache", fields, [*rows, *(Seen(c, c.shape) for c in caches), slots], caches,
           k)


def _by_heads(b: Builder, x: Value) -> Seen:
    """[rows, heads, dim]"""
    rows = b.setting.axes.matrix(x)[0]
    return b.read(x, (rows, _heads(x), _dim(x)))


def check_attention(node: Node) -> None:
    """Raises GraphError for what ATB's attention has not, whatever the phase."""
    given, attr = operands_of(node), node.attr
    k, v = (source_of(given[name]).node for name in "kv")
    if k is None or v is None or {k.op, v.op} != {kv_append}:
        raise GraphError("attention reads no KV cache that this layer appends to", node.loc,
                         "the ascend backend has attention over a KVCache of the layer: "
                         "kv = self.kv.append(k, v, positions)")
    if attr["softcap"]:
        raise GraphError(f"attention with a softcap of {attr['softcap']}: ATB caps no scores",
                         node.loc, "models without softcap, or --backend cpu")
    if not attr["causal"]:
        raise GraphError("attention that is not causal, over a KV cache", node.loc,
                         "the ascend backend has causal attention")
    positions = given.get("positions")
    if positions is None or any(operands_of(n)["positions"] is not positions for n in (k, v)):
        raise GraphError("attention has other positions than what was appended to the cache",
                         node.loc, "give both the same positions")
    if given["k"].shape[3] != given["v"].shape[3]:
        raise GraphError(f"k is {given['k'].type} and v is {given['v'].type}: ATB's caches have "
                         "heads of one width", node.loc, "give k and v the same head_dim")


def check_mask(node: Node, paged: bool, resolve: Callable[[Value], Value] | None = None) -> None:
    """Raises GraphError for a mask that the host cannot join with that of causal attention.
    `resolve` tells of a leaf of a repeat's body what it is outside."""
    given = operands_of(node)
    mask = given.get("mask")
    if mask is None:
        return
    if paged:
        raise GraphError(f"attention with a mask of its own, {mask.type}, over a paged cache: "
                         "ATB's PagedAttention takes none", node.loc, "leave the mask out: "
                         "positions, window and -1 for padding say what is seen; or --pass "
                         "kv_layout:policy=contiguous")
    mask = resolve(mask) if resolve else mask
    batch, tokens = given["q"].shape[:2]
    fits = len(mask.shape) == 4 and mask.shape[:3] == (batch, 1, tokens)
    if mask.node is None and mask.dtype == "bool" and fits:
        return
    found = f"is {mask.type}" if mask.node is None else "is computed"
    raise GraphError(f"the mask of attention {found}, wanted an input of bool[{batch}, 1, {tokens},"
                     " keys]", node.loc, "the host joins it with that of causal attention; what is "
                     "added to scores, as ALiBi is, runs with --backend cpu")


def lower_attention(b: Builder, node: Node) -> None:
    """The attention of a phase."""
    check_attention(node)
    given = operands_of(node)
    check_mask(node, b.setting.phase != "contiguous", b.resolve)
    scale = node.attr["scale"]
    fields: dict[str, Field] = {
        "headNum": _heads(given["q"]), "kvHeadNum": _heads(given["k"]),
        "qkScale": float(_dim(given["q"]) ** -0.5 if scale is None else scale)}
    if b.setting.phase == "contiguous":
        _contiguous(b, node, given, fields)
        return
    if node.attr["window"]:
        raise GraphError(f"attention with a window of {node.attr['window']} over a paged cache: "
                         "ATB's PagedAttention sees all keys", node.loc,
                         "--pass kv_layout:policy=contiguous")
    if b.setting.phase == "prefill":
        _prefill(b, node, given, fields)
    else:
        _decode(b, node, given, fields)


def _new_rows(given: Operands) -> list[Value]:
    """The rows of k and v that a step appends."""
    nodes = [source_of(given[name]).node for name in "kv"]
    return [node.inputs[1] for node in nodes if node is not None]


def _prefill(b: Builder, node: Node, given: Operands, fields: dict[str, Field]) -> None:
    """Every sequence starts, so that its keys are its new rows: nothing is read from the cache."""
    nz = b.setting.soc == "310p"
    mask = b.prepared("triangle", NZ_MASK if nz else (MASK_SIZE, MASK_SIZE),
                      dtype=b.setting.dtype, format=b.setting.cache_format)
    lengths = b.prepared("lengths", (SEQUENCES,), host=True)
    fields |= {"calcType": Enum("PA_ENCODER"), "maskType": Enum("MASK_TYPE_NORM_COMPRESS"),
               "isTriuMask": 1, "kvcacheCfg": Enum("K_CACHE_V_CACHE")}
    rows = [b.matrix(x) for x in (given["q"], *_new_rows(given))]
    b.emit("SelfAttention", fields, [*rows, mask, lengths], [b.output(node.outputs[0])], node)


def _decode(b: Builder, node: Node, given: Operands, fields: dict[str, Field]) -> None:
    """Every row is a sequence of its own to ATB, which sees the keys up to its position."""
    positions, table = given["positions"], given["table"]
    blocks = b.prepared("blocks", (QUERIES, PAGES), (table,))
    contexts = b.prepared("contexts", (QUERIES,), (positions,), host=True)
    fields |= {"maskType": Enum("UNDEFINED")}
    q = _by_heads(b, given["q"])
    caches = [b.read(given[name]) for name in "kv"]
    b.emit("PagedAttention", fields, [q, *caches, blocks, contexts],
           [b.output(node.outputs[0], q.shape)], node)


def _contiguous(b: Builder, node: Node, given: Operands, fields: dict[str, Field]) -> None:
    """FA: writes the new rows into the cache, then attends to what a mask shows."""
    positions, window = given["positions"], node.attr["window"]
    told = (given["mask"],) if "mask" in given else ()
    mask = b.prepared("mask", (SEQUENCES, TOKENS, SLOTS), (positions, *told),
                      dtype=b.setting.dtype, window=window)
    offsets = b.prepared("offsets", (SEQUENCES,), (positions,), host=True)
    lengths = b.prepared("lengths", (SEQUENCES,), host=True)
    layer = b.prepared("layer", (1,))
    fields |= {"calcType": Enum("UNDEFINED"), "maskType": Enum("MASK_TYPE_NORM"), "isTriuMask": 0,
               "kvcacheCfg": Enum("K_CACHE_V_CACHE")}
    rows = [b.matrix(x) for x in (given["q"], *_new_rows(given))]
    caches = [b.read(given[name]) for name in "kv"]
    b.emit("SelfAttention", fields, [*rows, *caches, mask, offsets, lengths, layer],
           [b.output(node.outputs[0])], node)


__all__ = ["Pairs", "check_attention", "check_mask", "lower_append", "lower_attention",
           "lower_rope", "operands_of", "pairs_of"]
