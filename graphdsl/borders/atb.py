"""A built decoder layer behind the order of calls of ATB's torch example.

Source: the Operation of Ascend Transformer Boost's torch examples: every tensor is given at every
call, and the cache goes in as `past` and comes out as `present`.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graphdsl.borders.atb_caches import ORDER, caches_for
from graphdsl.borders.atb_param import check_param
from graphdsl.borders.masks import with_mask
from graphdsl.builder import BuildOptions, build_graph, check_options
from graphdsl.errors import GraphError
from graphdsl.ir import Graph, size_value
from graphdsl.layer import Layer, trace
from graphdsl.lazy import torch, torch_dtype
from graphdsl.manifest import Json
from graphdsl.passes.base import Target
from graphdsl.runtime.operator import Operator

if TYPE_CHECKING:
    from torch import Tensor

INPUTS = ("x", "positions", "cos", "sin")
BEHIND = ("position_ids", "cos_table", "sin_table", "mask", "past_key", "past_value")
GROWN = ("hidden", "mask", "past_key", "past_value")
"""Tensors that differ from call to call."""
WANTED = "[seq, batch, kv_heads, dim]"
HIDES = -9000.0
"""A number that is added to a score, and that is no more than this, hides a key."""


@dataclass(frozen=True)
class _Widths:
    """The sizes that the layer fixes."""

    kv_heads: int
    dims: tuple[int, int]
    rotary: int


@dataclass(frozen=True, eq=False)
class _Table:
    """The columns of a cos or sin table that the layer reads, f32 [positions, rotary]."""

    source: weakref.ref[Tensor]
    rows: Tensor

    def at(self, position_ids: Tensor) -> Tensor:
        """The rows of these positions: f32 [batch, tokens, rotary]."""
        return self.rows.index_select(0, position_ids.reshape(-1)).reshape(
            *position_ids.shape, self.rows.shape[1])


class AtbLayer:
    """A decoder Layer that takes x, positions, cos and sin and has one KV cache, called as an
    Operation of ATB is: see `execute`.

    It is built for the backend and dtype of `options`, once without and once with every kind of
    mask that it is given, at the first call that needs it. It owns the cache: a buffer of `reserve`
    rows to spare, of which `present` is a view, so that a past that is the present of an earlier
    call is not copied. Caches of a 310p lie in tiles, of which there are no views: presents are
    views of a second buffer, into which every call copies its new rows.

    One caller at a time: `twin` makes others. `name` is that of the layer, and how errors begin.

    Raises GraphError for a Layer that takes something else or keeps its cache in another order, and
    for options of kv_layout that ask for one.
    """

    def __init__(self, layer: Layer, options: BuildOptions, reserve: int = 1024) -> None:
        self._target = check_options(options).target
        asked = options.passes.get("kv_layout", {})
        layouts = {**options.passes, "kv_layout": _layout(self._target, asked)}
        self._options = replace(options, passes=layouts, out=None)
        self._graph = trace(layer, options.dtype)
        self._widths = _widths(self._graph, _order(self._target))
        self.name = self._graph.name
        self.weights = tuple(v.name for v in self._graph.params)
        self._operators: dict[str, Operator] = {}
        self._reserve = reserve
        self._forget()

    def _forget(self) -> None:
        """Without weights, tables or rows."""
        self._given: tuple[weakref.ref[Tensor], ...] = ()
        self._packed: list[tuple[Json, list[Tensor]]] = []
        self._tables: dict[str, _Table] = {}
        self._caches = caches_for(_order(self._target), self._target.kv_storage, self._reserve)

    def __repr__(self) -> str:
        return (f"AtbLayer({self.name!r}, backend={self._options.backend!r}, "
                f"dtype={self._options.dtype!r})")

    def twin(self) -> AtbLayer:
        """Another of the same builds, with weights and a cache of its own: what another layer of a
        model, or another thread, has."""
        other = object.__new__(AtbLayer)
        vars(other).update(vars(self))
        other._forget()
        return other

    def set_name(self, name: str) -> None:
        """How its errors begin from now on."""
        self.name = name

    def set_param(self, text: str) -> None:
        """Checks the JSON that ATB's Operation would take its numbers from. Raises GraphError
        where they are not those that the layer was built with."""
        check_param(self.name, self._graph, text)

    @property
    def copied_bytes(self) -> int:
        """The bytes of caches that were copied so far: pasts that were no presents of ours, buffers
        that had to grow, and what goes into tiles and out of them."""
        return self._caches.copied_bytes

    def execute(self, tensors: Sequence[Tensor | None]) -> list[Tensor]:
        """[hidden, *weights, position_ids, cos_table, sin_table, mask, past_key, past_value] ->
        [hidden, present_key, present_value].

        hidden[batch, tokens, hidden]; weights in the order of `weights`, as torch's Linear has
        them, packed when they are first given and known again by identity, so that changing one in
        place is not noticed; position_ids[batch, tokens], whole numbers, are rows of the tables
        [max_positions, head_dim] (two equal halves; the first is enough); mask[tokens, keys] or
        [batch, 1, tokens, keys], bool (True: seen) or added (f32, or the layer's dtype), or None:
        attention is causal either way; past and present are [seq, batch, kv_heads, dim], that is
        transformers' caches permuted by (2, 0, 1, 3); a past of seq 0 begins a new sequence.

        All tensors are where the operator runs; position_ids and mask may be on the CPU as well.
        Where attention is ATB's own a mask may only hide: what is added is 0 or at most -9000.

        A present is a view of the buffer, and holds its rows until a call is given a past that
        ends before them or that is not a present. Raises GraphError, before anything is changed,
        for tensors of other numbers, shapes, dtypes, or an order that can be told apart; ToolError
        when the compiler fails.
        """
        x, weights, at, tables, mask, past = self._read(tensors)
        self._check_past(past, len(x))
        seen, tokens = len(past[0]), x.shape[1]
        inputs = [x, _positions(x, seen), *self._angles(at, tables, x)]
        given = self._mask(mask, x, seen + tokens)
        operator = self._operator(given)
        self._check_place(operator, x)
        packed = self._weights(operator, weights)
        state = self._caches.begin(past, tokens)
        y = operator.run(inputs if given is None else [*inputs, given], packed, state)[0]
        return [y, *self._caches.end(seen, tokens)]

    def execute_out(self, tensors: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> None:
        """As `execute`, with the results copied into tensors of their shapes and dtype. Raises
        GraphError, before anything is changed, for other outputs."""
        x, *_, past = self._read(tensors)
        self._check_past(past, len(x))
        rows = len(past[0]) + x.shape[1]
        wanted = [list(x.shape), *([rows, *t.shape[1:]] for t in past)]
        if len(outputs) != len(wanted):
            raise GraphError(f"{self.name}: {len(outputs)} outputs given, {len(wanted)} wanted",
                             hint="hidden, present_key, present_value")
        for name, found, shape in zip(("hidden", "present_key", "present_value"), outputs, wanted,
                                      strict=True):
            self._tensor(f"the output {name}", found)
            if list(found.shape) != shape or found.dtype != x.dtype or found.device != x.device:
                raise GraphError(f"{self.name}: the output {name} is {found.dtype} "
                                 f"{list(found.shape)} on {found.device}, wanted {x.dtype} {shape} "
                                 f"on {x.device}")
        for target, result in zip(outputs, self.execute(tensors), strict=True):
            target.copy_(result)

    def _read(self, tensors: Sequence[Tensor | None]) -> tuple[
            Tensor, list[Tensor], Tensor, list[Tensor], Tensor | None, list[Tensor]]:
        """hidden, weights, position_ids, tables, mask, past."""
        names = ("hidden", *self.weights, *BEHIND)
        if len(tensors) != len(names):
            raise GraphError(f"{self.name}: {len(tensors)} tensors given, {len(names)} "
                             "wanted", hint=", ".join(names))
        mask = tensors[-3] if tensors[-3] is None else self._tensor("mask", tensors[-3])
        x, *rest = [self._tensor(name, found) for name, found in zip(names, tensors, strict=True)
                    if name != "mask"]
        for name, found in zip((name for name in names[1:] if name != "mask"), rest, strict=True):
            if found.device != x.device and name != "position_ids":
                raise GraphError(f"{self.name}: {name} is on {found.device}, wanted {x.device}, "
                                 "where hidden is")
        weights, (at, *tables), past = rest[:-5], rest[-5:-2], rest[-2:]
        dtype, width = torch_dtype(self._options.dtype), self._graph.inputs[0].shape[-1]
        if x.dim() != 3 or x.dtype != dtype or x.shape[2] != width:
            raise GraphError(f"{self.name}: hidden is {x.dtype} {list(x.shape)}, wanted "
                             f"{dtype} [batch, tokens, {width}]")
        return x.contiguous(), weights, at, tables, mask, past

    def _tensor(self, name: str, found: Tensor | None) -> Tensor:
        if not isinstance(found, torch.Tensor):
            raise GraphError(f"{self.name}: {name} is a {type(found).__name__}, wanted a "
                             "torch.Tensor", hint="only mask may be None; a first past has seq 0")
        if found.requires_grad and torch.is_grad_enabled() and name in GROWN:
            raise GraphError(f"{self.name}: {name} requires grad, and a built operator has "
                             "no backward", hint="call it under torch.no_grad()")
        return found

    def _check_past(self, past: list[Tensor], batch: int) -> None:
        """Raises GraphError for another order, batch, size or dtype."""
        for name, found, dim in zip(BEHIND[-2:], past, self._widths.dims, strict=True):
            wanted = [batch, self._widths.kv_heads, dim]
            label = f"{self.name}: {name} is {found.dtype} {list(found.shape)}"
            if found.dim() != 4 or list(found.shape[1:]) != wanted:
                raise GraphError(f"{label}, wanted {WANTED} = [seq, {', '.join(map(str, wanted))}]",
                                 hint=_permutation(name, list(found.shape), wanted))
            if found.dtype != torch_dtype(self._options.dtype):
                raise GraphError(f"{label}, wanted {torch_dtype(self._options.dtype)}")
        key, value = map(len, past)
        if key != value:
            raise GraphError(f"{self.name}: past_key has {key} tokens and past_value has "
                             f"{value}", hint=f"both are {WANTED}")

    def _angles(self, at: Tensor, tables: list[Tensor], x: Tensor) -> list[Tensor]:
        """cos and sin of this step, f32 [batch, tokens, rotary]."""
        owner = self.name
        if at.shape != x.shape[:2] or at.is_floating_point() or at.dtype == torch.bool:
            raise GraphError(f"{owner}: position_ids is {at.dtype} {list(at.shape)}, wanted whole "
                             f"numbers [batch, tokens] = {list(x.shape[:2])}")
        read = [self._table(name, t) for name, t in zip(BEHIND[1:3], tables, strict=True)]
        least, most = (int(n) for n in torch.aminmax(at)) if at.numel() else (0, 0)
        count = min(len(table.rows) for table in read)
        if least < 0 or most >= count:
            raise GraphError(f"{owner}: position_ids holds {least if least < 0 else most}, wanted "
                             f"0 to {count - 1}", hint="they are rows of cos_table and sin_table")
        rows = at.to(x.device).long()
        return [table.at(rows) for table in read]

    def _table(self, name: str, found: Tensor) -> _Table:
        """A table, read once and known again by identity."""
        known = self._tables.get(name)
        if known is None or known.source() is not found:
            rows = _columns(f"{self.name}: {name}", found, self._widths.rotary)
            known = self._tables[name] = _Table(weakref.ref(found), rows)
        return known

    def _mask(self, mask: Tensor | None, x: Tensor, keys: int) -> Tensor | None:
        """The mask as the operator takes it, [batch, 1, tokens, keys], if there is one."""
        if mask is None:
            return None
        batch, tokens = x.shape[:2]
        shape = list(mask.shape)
        if shape[:-1] not in ([tokens], [batch, 1, tokens]) or shape[-1] < keys:
            raise GraphError(f"{self.name}: mask is {shape}, wanted [{tokens}, {keys}] or "
                             f"[{batch}, 1, {tokens}, {keys}]",
                             hint="the keys are those of past and the new ones; more are ignored")
        if mask.dtype not in self._kinds:
            raise GraphError(f"{self.name}: mask is {mask.dtype}, wanted "
                             f"{', '.join(map(str, self._kinds))}")
        if _order(self._target) != ORDER and mask.dtype != torch.bool:
            mask = _shown(self.name, mask)
        return mask.expand(batch, 1, tokens, shape[-1]).contiguous()

    @property
    def _kinds(self) -> dict[torch.dtype, str]:
        """The dtypes of masks."""
        return {torch_dtype(kind): kind for kind in ("bool", "f32", self._options.dtype)}

    def _operator(self, mask: Tensor | None) -> Operator:
        """The operator for this kind of mask, built when it is first needed."""
        kind = "" if mask is None else self._kinds[mask.dtype]
        if kind not in self._operators:
            graph = with_mask(self._graph, kind) if kind else self._graph
            self._operators[kind] = Operator(build_graph(graph, self._options).path)
        return self._operators[kind]

    def _check_place(self, operator: Operator, x: Tensor) -> None:
        """Raises GraphError for tensors on another kind of device than the operator runs on."""
        wanted = operator.inputs[0].device
        if x.device.type != wanted:
            raise GraphError(f"{self.name}: hidden is on {x.device}, wanted {wanted}",
                             hint=f'hidden.to("{wanted}"), and all others')

    def _weights(self, operator: Operator, weights: list[Tensor]) -> list[Tensor]:
        """What `operator` reads of the weights, packed once for all operators that pack alike."""
        known = [ref() for ref in self._given]
        if len(known) != len(weights) or any(a is not b for a, b in
                                             zip(known, weights, strict=True)):
            self._packed = []
        params = operator.manifest["params"]
        for packed_as, packed in self._packed:
            if packed_as == params:
                return packed
        packed = operator.pack_weights(dict(zip(self.weights, weights, strict=True)))
        self._packed.append((params, packed))
        self._given = tuple(weakref.ref(w) for w in weights)
        return packed


def _order(target: Target) -> str:
    """The order of the caches of an operator: that of pasts where there is a choice."""
    return ORDER if ORDER in target.kv_orders else target.kv_order


def _layout(target: Target, asked: Mapping[str, str]) -> dict[str, str]:
    """What the pass that lays caches out is told. Raises GraphError where it is asked for caches
    that are no pasts."""
    order = _order(target)
    kept = {"order": order, "policy": "contiguous"}
    for name, value in asked.items():
        if kept.get(name) != value:
            wanted = f"{name}={kept[name]}" if name in kept else f"no {name}"
            raise GraphError(f"kv_layout:{name}={value} is not for an AtbLayer of {target.name}, "
                             f"wanted {wanted}",
                             hint=f"leave {name} out: pasts and presents are {WANTED}, in the "
                             "dtype of the layer")
    return {**asked, **({"order": ORDER} if order == ORDER else {"policy": "contiguous"})}


def _widths(graph: Graph, order: str) -> _Widths:
    """The sizes of a layer. Raises GraphError for one that cannot be called as here."""
    names = tuple(v.name for v in graph.inputs)
    if names != INPUTS or len(graph.results) != 1:
        raise GraphError(f"{graph.name} takes {', '.join(names)} and returns {len(graph.results)} "
                         f"values, wanted {', '.join(INPUTS)} and one value")
    rotary = graph.inputs[2].shape[-1]
    if not isinstance(rotary, int):
        raise GraphError(f"{graph.name}: the last axis of cos is {rotary}, wanted a number",
                         hint=f"give the config a field or property {rotary}")
    if len(graph.state) != 2:
        raise GraphError(f"{graph.name} has {len(graph.state) // 2} KV caches, wanted 1")
    layout = graph.state[0].type.layout
    if layout and layout.pinned and (layout.order != order or not layout.is_strided):
        raise GraphError(f"{graph.name} keeps its cache as {layout}, wanted {order}",
                         hint=f'leave KVCache without a layout, or give it "{order}"')
    key, value = ([size_value(size, {}) for size in v.shape[2:]] for v in graph.state)
    return _Widths(key[0], (key[1], value[1]), rotary)


def _positions(x: Tensor, past: int) -> Tensor:
    """The slots of the new tokens, i32 [batch, tokens]."""
    batch, tokens = x.shape[:2]
    return torch.arange(past, past + tokens, dtype=torch.int32).expand(batch, tokens).contiguous()


def _shown(owner: str, mask: Tensor) -> Tensor:
    """What is seen by a mask that is added: bool. Raises GraphError for one that does more than
    hide keys."""
    seen = mask == 0
    other = mask[~(seen | (mask <= HIDES))]
    if other.numel():
        raise GraphError(f"{owner}: mask adds {float(other[0]):g} to a score, wanted 0, or at most "
                         f"{HIDES:g} to hide a key", hint="a bool mask says what is seen, whatever "
                         "the dtype; biases, as ALiBi's are, are added by the cpu backend alone")
    return seen


def _columns(label: str, found: Tensor, rotary: int) -> Tensor:
    """The columns of a table that a layer reads, f32. Raises GraphError for another table."""
    fits = (found.dim() == 2 and found.shape[1] in (rotary, 2 * rotary)
            and found.is_floating_point())
    if not fits:
        raise GraphError(f"{label} is {found.dtype} {list(found.shape)}, wanted numbers "
                         f"[max_positions, {2 * rotary}], or {rotary} columns of them")
    if found.shape[1] != rotary and not torch.equal(found[:, :rotary], found[:, rotary:]):
        raise GraphError(f"{label}: its columns from {rotary} on differ from those before",
                         hint=f"give one column for each of the {rotary} angles, in their order")
    return found[:, :rotary].detach().to(torch.float32, copy=True,
                                         memory_format=torch.contiguous_format)


def _permutation(name: str, shape: list[int], wanted: list[int]) -> str:
    """How to bring a past of another order, if it is one, into ours."""
    for order in ((2, 0, 1, 3), (1, 0, 2, 3)):
        if len(shape) == 4 and [shape[axis] for axis in order[1:]] == wanted:
            return f"{name}.permute{order}"
    return "the batch is that of hidden; a past of seq 0 begins a new sequence"


__all__ = ["AtbLayer"]
