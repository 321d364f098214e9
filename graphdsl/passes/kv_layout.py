"""One layout for every KV state, written into the types that writer and reader share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from graphdsl.errors import GraphError
from graphdsl.ir import (
    ORDERS,
    POLICIES,
    STORAGES,
    Graph,
    Layout,
    Size,
    TensorType,
    Value,
    terms,
)
from graphdsl.layout import BLOCKS, MOST_SLOTS, PAGES, TABLE
from graphdsl.passes.base import Fired, Result, Target
from graphdsl.passes.caches import CacheTypes, typed, with_leaves
from graphdsl.passes.memory import effects_of
from graphdsl.passes.repeat import REPEAT, operands_of
from graphdsl.passes.shifting import check_shifts

PLAIN = "that of the dtype"


@dataclass(frozen=True)
class KVLayout:
    """Sets the layout of every KV state that is not pinned: the user's choice, or the order that
    the backend reads fastest. Copies what cannot be read where it lies, and gives paged caches
    their block table.

    Raises GraphError for what the target does not have, for an option that contradicts a pinned
    layout, and for readers that the layout does not allow.
    """

    name: ClassVar[str] = "kv_layout"
    order: str = field(default="", metadata={"choices": ("", *ORDERS)})
    policy: str = field(default="", metadata={"choices": ("", *POLICIES)})
    block: int | None = field(default=None, metadata={"of_target": "kv_block"})
    storage: str = field(default="", metadata={"choices": ("", *STORAGES)})

    def check(self, target: Target) -> None:
        """Raises GraphError for a block that the policy or its size does not allow."""
        if self.block is None:
            return
        if (self.policy or target.kv_policy) != "paged":
            raise GraphError(f"--pass kv_layout:block={self.block}: only paged caches have blocks",
                             hint=f"--pass kv_layout:policy=paged,block={self.block}")
        if self.block < 1:
            raise GraphError(f"--pass kv_layout:block={self.block}: a block has at least 1 slot",
                             hint=f"the default is {target.kv_block}")
        if self.block > MOST_SLOTS:
            raise GraphError(f"--pass kv_layout:block={self.block}: a block has at most "
                             f"{MOST_SLOTS} slots", hint=f"the default is {target.kv_block}")

    def run(self, graph: Graph, target: Target) -> Result:
        _check_inputs(graph)
        layouts = self._layouts(graph, target)
        for value in graph.leaves:
            _check_target(layouts.get(value), target)
        _check_blocks(layouts)
        types = [replace(v.type, layout=layouts.get(v)) for v in graph.leaves]
        changed = [Fired("KVLayout", layout.loc, f"{v.name}, {layout}")
                   for v, layout in layouts.items() if v.type.layout != layout]
        new, relayouts = _with_types(graph, types)
        check_shifts(new)
        return Result(new, (*changed, *relayouts))

    def _layouts(self, graph: Graph, target: Target) -> dict[Value, Layout]:
        """The layout that every cache among the leaves has from now on."""
        pins = _pinned(graph)
        for value, layout in pins.items():
            self._check_pin(value, layout)
        policy = self.policy or target.kv_policy
        block = self.block or next((p.block for p in pins.values() if p.block), target.kv_block)
        chosen = Layout(self.order or target.kv_order, policy, block if policy == "paged" else 0,
                        self.storage or target.kv_storage)
        found = {v: v.type.layout for v in graph.inputs if v.type.layout}
        for value in graph.state:
            if value.type.layout:
                found[value] = pins.get(value) or replace(chosen, loc=value.type.layout.loc)
        return found

    def _check_pin(self, value: Value, pin: Layout) -> None:
        """Raises GraphError where an option says something else than the Layer does."""
        for key, wanted, found in (("order", self.order, pin.order),
                                   ("policy", self.policy, pin.policy),
                                   ("block", self.block, pin.block),
                                   ("storage", self.storage, pin.storage)):
            if wanted and wanted != found:
                raise GraphError(f"--pass kv_layout:{key}={wanted}: {value.name} is pinned to "
                                 f"{pin}", pin.loc, "leave the option out, or the layout of the "
                                 "KVCache")


def _pinned(graph: Graph) -> dict[Value, Layout]:
    """The states that keep their layout. The turns of a repeat share one, so where one of them is
    pinned all are."""
    pins = {v: v.type.layout for v in graph.state if v.type.layout and v.type.layout.pinned}
    if not pins:
        return pins
    home: dict[Value, Value] = {v: v for v in graph.state}
    for node in graph.nodes:
        if node.op is REPEAT:
            for states in zip(*operands_of(node, node.inputs).state, strict=True):
                together = [home[v] for v in states if v in home]
                pin = next((pins[v] for v in together if v in pins), None)
                pins.update((v, pins.get(v, pin)) for v in together if pin)
        for output, source in effects_of(node).shares.items():
            if node.inputs[source] in home:
                home[node.outputs[output]] = home[node.inputs[source]]
    return pins


def _check_inputs(graph: Graph) -> None:
    """Raises GraphError where a cache that is an input would be written."""
    given = {v for v in graph.inputs if v.type.layout}
    for node in graph.nodes if given else ():
        for value in (node.inputs[i] for i in effects_of(node).writes):
            if value in given:
                raise GraphError(f"{node.name} writes into {value.name}, which is an input and "
                                 "is only read", node.loc, "append to a KVCache of the Layer")


def _check_target(layout: Layout | None, target: Target) -> None:
    """Raises GraphError for an order, policy or storage that the backend does not have."""
    if layout is None:
        return
    if layout.order not in target.kv_orders:
        raise GraphError(f"the {target.name} backend has no caches in the order {layout.order}",
                         layout.loc, f"orders: {', '.join(sorted(target.kv_orders))}")
    if layout.policy not in target.kv_policies:
        raise GraphError(f"the {target.name} backend has no {layout.policy} caches", layout.loc,
                         f"policies: {', '.join(p for p in POLICIES if p in target.kv_policies)}")
    if layout.storage not in target.kv_storages:
        has = [s or PLAIN for s in ("", *STORAGES) if s in target.kv_storages]
        what = f"no {layout.storage} storage" if layout.storage else "no caches without a storage"
        raise GraphError(f"the {target.name} backend has {what}", layout.loc,
                         f"storages: {', '.join(has)}")


def _check_blocks(layouts: Mapping[Value, Layout]) -> None:
    """Raises GraphError for blocks of several sizes: all caches share one block table."""
    first: Value | None = None
    for value, layout in layouts.items():
        if layout.policy != "paged":
            continue
        first = value if first is None else first
        if layout.block != layouts[first].block:
            raise GraphError(f"{first.name} has blocks of {layouts[first].block}"
                             f"{_made(layouts[first])} and {value.name} of {layout.block}: they "
                             "share one block table", layout.loc, "give both the same block size")


def _made(layout: Layout) -> str:
    return f" (made at {layout.loc})" if layout.loc else ""


def _with_types(graph: Graph, types: Sequence[TensorType]) -> tuple[Graph, list[Fired]]:
    """`graph` with leaves of these types, a block table where one is needed, and results that are
    contiguous copies of the caches that they name."""
    leaves = typed(graph.leaves, types)
    found = next((v for v in leaves if v.name == TABLE), None)
    sizes = [v.shape[0] for v in leaves if v.type.layout and v.type.layout.policy == "paged"]
    table = _new_table(sizes) if sizes else None
    if found is not None and table is not None and (found.kind, found.type) == (
            table.kind, table.type):
        table = found
    change = CacheTypes()
    outputs = list(change.outputs(graph, leaves, table))
    for i, value in enumerate(graph.results):
        if outputs[i].type.layout:
            outputs[i] = change.plain(outputs[i], value.loc, "result", table)
    new = with_leaves(graph, leaves, tuple(outputs))
    if table is not None and table in new.users:
        _check_dims(graph)
    if table is not None and table not in new.state and table in new.users:
        if found is not None:
            raise GraphError(f"{graph.name} has a leaf of its own, the {found.kind or 'input'} "
                             f"{TABLE}, which is what the block table of paged caches is called",
                             hint="rename it")
        new = replace(new, state=(*new.state, table), outputs=(*new.outputs, table))
    unchanged = all(a is b for a, b in zip((*graph.leaves, *graph.outputs),
                                           (*new.leaves, *new.outputs), strict=False))
    return (graph if unchanged else new), change.fired


def _check_dims(graph: Graph) -> None:
    """Raises GraphError for a leaf that has a size of its own by the name of one of the pool's or
    of the block table's: at run time they would be the same number."""
    for value in (v for v in graph.leaves if v.name != TABLE):
        for dim in (d for size in value.shape for d in terms(size)):
            if dim.name in (BLOCKS.name, PAGES.name):
                raise GraphError(f"{graph.name}: {value.name} is {value.type}, but {dim.name} is "
                                 "what a size of paged caches is called", hint="rename it")


def _new_table(batches: Sequence[Size]) -> Value:
    """The block table of caches with these numbers of sequences, which have to be one."""
    other = next((b for b in batches if b != batches[0]), None)
    if other is not None:
        raise GraphError(f"paged caches of {batches[0]} and of {other} sequences: they share one "
                         "block table", hint="give them the same batch size")
    return Value(TensorType((batches[0], PAGES), "i32"), name=TABLE, kind="state")
