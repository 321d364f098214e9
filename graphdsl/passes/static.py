"""Graphs of fixed sizes, for chips that have no others: a prefill part and a decode part.

`block` takes a prompt padded to a length S, `block_cache` one token and the keys and values of up
to S before it. Position ids and masks are inputs, so that nothing in the graphs depends on how many
tokens there are; the helpers that make them are in `graphdsl.runtime.static`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from graphdsl.errors import GraphError
from graphdsl.ir import Dim, Graph, Node, Size, TensorType, Value
from graphdsl.layer import Layer, trace
from graphdsl.ops.attention import attention
from graphdsl.ops.kv import kv_append
from graphdsl.ops.shape import concat, slice, take_rows
from graphdsl.passes.base import Fired, Result, Target
from graphdsl.passes.pipeline import configured
from graphdsl.passes.sizes import Sizes
from graphdsl.passes.surface import surfaced

PARTS = ("block", "block_cache")
CACHES = ("shift", "append")
MASK = "mask"


@dataclass(frozen=True)
class StaticGraphs:
    """`block` for a prompt and `block_cache` for one token after it: see `static`."""

    block: Graph
    block_cache: Graph


@dataclass(frozen=True)
class Static:
    """One part of what `static` makes. It changes what a graph takes and returns, so it comes
    before the pipeline and not in it."""

    name: ClassVar[str] = "static"
    length: int = 0
    part: str = field(default="", metadata={"choices": ("", *PARTS)})
    cache: str = field(default="shift", metadata={"choices": CACHES})

    def run(self, graph: Graph, target: Target | None = None) -> Result:
        """The part that is named, or the first. Raises GraphError as `static` does."""
        part = self.part or PARTS[0]
        made: Graph = getattr(static(graph, self.length, cache=self.cache), part)
        return Result(made, (Fired("Static", None, f"{part}, length {self.length}"),))


def static_parts(options: Mapping[str, str], target: Target) -> tuple[Static, ...]:
    """What `--pass static:key=value` asks for: both parts unless one is named, and nothing where
    there are no options. Raises GraphError for an option or value that is not there, and for a
    backend that takes no static graphs."""
    if not options:
        return ()
    chosen, = configured((Static(),), {Static.name: options}, target)
    assert isinstance(chosen, Static)
    check_length(chosen.length)
    if not target.takes_static:
        raise GraphError(f"the {target.name} backend takes no static graphs: its attention reads "
                         "caches that the graph appends to", hint="build the layer as it is, for "
                         "one build serves all lengths there, or --backend cpu")
    return tuple(replace(chosen, part=part) for part in ((chosen.part,) if chosen.part else PARTS))


def static(layer: Layer | Callable[..., Any] | Graph, length: int, *, cache: str = "shift",
           dtype: str = "f32") -> StaticGraphs:
    """A Layer, a Model (traced for `dtype`) or a Graph for one sequence of at most `length` = S
    tokens, without any symbolic size.

    Both parts take the inputs of the layer, then `mask` in the dtype of the queries, which is added
    to the scores: [1, 1, S, S] for `block`, [1, 1, 1, S + 1] for `block_cache`, whose last column
    is that of the new token. `block_cache` takes the caches besides, each [1, S, kv_heads,
    head_dim]. Results are those of the layer, then for every cache the keys or values of the S
    tokens in `block`; in `block_cache` the last S rows of what it had and the new one (cache
    "shift"), or the new row alone, [1, 1, kv_heads, head_dim] ("append").

    Raises GraphError for a length that is no whole number above 0 or beyond what the layer takes,
    for a layer without positions or caches, with attention that reads anything but them or has a
    mask of its own, with other symbolic sizes, and for "append" with a window below S.
    """
    check_length(length)
    if cache not in CACHES:
        raise GraphError(f"static: no cache {cache!r}", hint=f"caches: {', '.join(CACHES)}")
    graph = surfaced(trace(layer, dtype))
    roles = _Roles.of(graph)
    return StaticGraphs(_Part(graph, roles, length, cache, length).made(),
                        _Part(graph, roles, length, cache, 1, has_past=True).made())


def check_length(length: int) -> None:
    """Raises GraphError for what is no length."""
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise GraphError(f"static: length is {length!r}, wanted a whole number above 0",
                         hint="static(layer, length=256), --static 256")


@dataclass(frozen=True)
class _Roles:
    """What the values of a graph are for. `appended` has the cache behind what an append gives."""

    positions: Value
    appended: Mapping[Value, Value]
    outputs: frozenset[Dim]
    """Sizes that count the rows which a Model gives results for."""

    @staticmethod
    def of(graph: Graph) -> _Roles:
        """Raises GraphError for a graph that cannot be made static."""
        appends = [node for node in graph.nodes if node.op is kv_append]
        if not appends:
            raise GraphError(f"{graph.name} has no caches and no positions: nothing in it depends "
                             "on the tokens before", hint="self.kv.append(k, v, positions)")
        for value in graph.leaves:
            if value.name == MASK:
                raise GraphError(f"{graph.name}: a leaf of it is called {MASK} already",
                                 hint=f"rename it: {MASK} is an input of static graphs")
        appended: dict[Value, Value] = {}
        for node in appends:
            _check_append(graph, node, appends[0])
            appended[node.outputs[0]] = node.inputs[0]
        for old, new in zip(graph.state, graph.new_state, strict=True):
            if appended.get(new) is not old:
                raise GraphError(f"{graph.name}: nothing is appended to {old.name}, or twice",
                                 new.loc, "append all rows of a step at once")
        positions = appends[0].inputs[2]
        _check_readers(graph, positions, appended)
        rows = [node.inputs[1] for node in graph.nodes if node.op is take_rows]
        outputs = {v.shape[1] for v in rows if v in graph.inputs and isinstance(v.shape[1], Dim)}
        return _Roles(positions, appended, frozenset(outputs))


def _check_append(graph: Graph, node: Node, first: Node) -> None:
    cache, _, positions = node.inputs[:3]
    if positions not in graph.inputs or positions is not first.inputs[2]:
        raise GraphError(f"{graph.name}: a cache is appended to by positions that are not the one "
                         "input of all appends", node.loc,
                         "positions[batch, tokens]:i32 in the signature")
    layout = cache.type.layout
    if layout is not None and layout.pinned and str(layout) != "bsnd":
        raise GraphError(f"{cache.name} is pinned to {layout}; the caches of a static graph are "
                         "plain inputs", layout.loc or node.loc, "leave the layout out")


def _check_readers(graph: Graph, positions: Value, appended: Mapping[Value, Value]) -> None:
    """Raises GraphError for whatever knows caches by their slots, and for attention that reads no
    cache."""
    caches = {*appended, *appended.values()}
    for result in graph.results:
        if result in caches:
            raise GraphError(f"{graph.name}: a result is a cache, whose slots a static graph moves",
                             result.loc, "the new rows of caches are results by themselves")
    for node in graph.nodes:
        if node.op is attention:
            _check_attention(node, positions, appended)
        elif node.op is not kv_append and any(v in caches for v in node.inputs):
            raise GraphError(f"{node.name} reads a cache by its slots, which a static graph moves",
                             node.loc, "read it by attention(q, kv.k, kv.v, positions)")


def _check_attention(node: Node, positions: Value, appended: Mapping[Value, Value]) -> None:
    operands = dict(zip(node.op.present(len(node.inputs), node.attr), node.inputs, strict=True))
    if any(v not in appended for v in node.inputs[1:3]):
        raise GraphError("attention reads what is no cache with this step's rows: a static graph "
                         "cannot tell its keys from padding", node.loc,
                         "append first, and read what append returns")
    if operands.get("positions") is not positions or not node.attr["causal"]:
        raise GraphError("attention is not causal by the positions of the append: a static graph "
                         "would see other keys", node.loc,
                         "attention(q, kv.k, kv.v, positions)")
    if "mask" in operands:
        raise GraphError("attention has a mask of its own, and a static graph takes one as an "
                         "input", node.loc, "leave the mask to the caller")


@dataclass
class _Part:
    """The making of one part. `tokens` is S or 1; with `has_past` there are caches to read."""

    graph: Graph
    roles: _Roles
    length: int
    cache: str
    tokens: int
    has_past: bool = False

    def made(self) -> Graph:
        graph, sizes = self.graph, Sizes(self.graph.name, self.sizes())
        env = {v: sizes.leaf(v) for v in (*graph.inputs, *graph.params)}
        mask = self.mask()
        past = {v: self.history(sizes, v) for v in graph.state} if self.has_past else {}
        rows: dict[Value, Value] = {}
        for node in graph.nodes:
            if node.op is kv_append:
                new = rows[node.outputs[0]] = env[node.inputs[1]]
                env[node.outputs[0]] = self.seen(node, past.get(node.inputs[0]), new)
            elif node.op is attention:
                env[node.outputs[0]] = self.attended(node, [env[v] for v in node.inputs[:3]], mask)
            else:
                made = sizes.node(node, tuple([env[v] for v in node.inputs]))
                env.update(zip(node.outputs, made.outputs, strict=True))
        results = [env[v] for v in graph.results]
        caches = [self.kept(env[v], rows[v]) for v in graph.new_state]
        name = f"{graph.name}_{PARTS[self.has_past]}"
        inputs = (*(env[v] for v in graph.inputs), mask, *past.values())
        return Graph(name, inputs, tuple(env[v] for v in graph.params), (), (*results, *caches))

    def sizes(self) -> dict[Dim, int]:
        """What every symbolic size of the graph is in this part."""
        batch, tokens = self.roles.positions.shape
        if not isinstance(tokens, Dim):
            raise GraphError(f"{self.graph.name}: {self.roles.positions.name} is "
                             f"{self.roles.positions.type}: it has a fixed length already",
                             hint="positions[batch, tokens]:i32")
        if isinstance(batch, int) and batch != 1:
            raise GraphError(f"{self.graph.name} is for {batch} sequences; a static graph is for "
                             "one", hint="positions[batch, tokens]:i32")
        found: dict[Dim, int] = dict.fromkeys(self.roles.outputs, 1)
        slots = {v.shape[1] for v in self.graph.state}
        found |= {d: self.length + self.has_past for d in slots if isinstance(d, Dim)}
        found |= {d: 1 for d in (batch,) if isinstance(d, Dim)}
        found[tokens] = self.tokens
        for dim, size in found.items():
            if not dim.lo <= size <= dim.hi:
                raise GraphError(f"static: length {self.length}: {self.graph.name} takes {dim} of "
                                 f"{dim.lo} to {dim.hi}, not {size}")
        return found

    @property
    def columns(self) -> int:
        """The keys that a query has."""
        return self.length + self.has_past

    def mask(self) -> Value:
        dtype = next(n.inputs[0].dtype for n in self.graph.nodes if n.op is attention)
        return Value(TensorType((1, 1, self.tokens, self.columns), dtype), name=MASK)

    def history(self, sizes: Sizes, state: Value) -> Value:
        """The input with the rows of the tokens before."""
        heads: tuple[Size, ...] = state.shape[2:]
        shape = (1, self.length, *(sizes.size(s) for s in heads))
        return Value(TensorType(shape, state.dtype), name=state.name)

    def seen(self, node: Node, past: Value | None, new: Value) -> Value:
        """All rows that an attention after this append sees: [1, columns, kv_heads, head_dim]."""
        if past is None:
            return new
        return concat.apply((past, new), {"axis": 1}, node.loc, node.scope).outputs[0]

    def kept(self, seen: Value, new: Value) -> Value:
        """What the caller gets of a cache."""
        if not self.has_past or self.cache == "append":
            return new
        return _last(seen, 1, self.length, seen.node)

    def attended(self, node: Node, operands: list[Value], mask: Value) -> Value:
        """The attention with the mask instead of positions. Tokens of a prompt stand in their
        order, so a window is that of their numbers; the keys of one token end with its own, so
        those beyond its window are left out."""
        window = node.attr["window"]
        inside = not window or window >= self.length
        if self.has_past and not inside:
            self.check_window(node, window)
            operands[1:] = (_last(v, 1, window, node) for v in operands[1:])
            mask = _last(mask, 3, window, node)
        attrs = {**node.attr, "given": ("mask",), "causal": False, "window": 0}
        if not self.has_past and not inside:
            attrs |= {"causal": True, "window": window}
        new = node.op.apply((*operands, mask), attrs, node.loc, node.scope, node.origin)
        return new.outputs[0]

    def check_window(self, node: Node, window: int) -> None:
        if self.cache == "append":
            raise GraphError(f"attention has a window of {window}, fewer than {self.length} "
                             "tokens: with cache append the caller places rows, and which of them "
                             "are the last is not known", node.loc,
                             "cache shift keeps them in order")


def _last(x: Value, axis: int, size: int, reader: Node | None) -> Value:
    """The last elements of x along an axis whose size is known, at the line of who reads them."""
    whole = x.shape[axis]
    assert isinstance(whole, int)
    attrs = {"axis": axis, "start": whole - size, "size": size}
    loc, scope = (reader.loc, reader.scope) if reader else (None, "")
    return slice.apply((x,), attrs, loc, scope).outputs[0]
