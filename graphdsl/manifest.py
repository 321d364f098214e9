"""The manifest: what a built library takes, gives and needs, as JSON that `load` trusts alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from graphdsl.ir import Dim, Graph, Size, TensorType, Value, constant, scaled, terms
from graphdsl.layout import BLOCKS
from graphdsl.ops.collectives import collectives_of
from graphdsl.paging import PagedRead, paged_reads
from graphdsl.plan import Plan, Port
from graphdsl.recipes import recipe_json, source_names

FORMAT = 1
Json = dict[str, Any]
Bounds = dict[Value, list[tuple[Size, Size]]]


@dataclass(frozen=True)
class Identity:
    """What a manifest says of the build as a whole."""

    backend: str
    dtype: str
    features: tuple[str, ...]


def size_json(size: Size) -> Any:
    """An int, or {"dims": {name: factor}, "const": n}."""
    if isinstance(size, int):
        return size
    return {"dims": {d.name: k for d, k in terms(size).items()}, "const": constant(size)}


def type_json(kind: TensorType) -> Json:
    made: Json = {"dtype": kind.dtype, "shape": [size_json(s) for s in kind.shape]}
    if kind.layout:
        made["layout"] = {"order": kind.layout.order, "policy": kind.layout.policy,
                          "block": kind.layout.block, "storage": kind.layout.storage}
    if kind.format:
        made["format"] = kind.format
    if kind.quant:
        made["quant"] = asdict(kind.quant)
    return made


def manifest_of(plan: Plan, source: Graph, identity: Identity) -> Json:
    """The manifest of `plan`, made from the user's graph `source`.

    Shapes and dtypes of states are logical ones; their layout says what they are in memory. A dim
    that `equals` something is no size of any tensor: it is computed from others. A backend's facts
    may add the "device" on which tensors lie, by torch's name; without one it is the CPU. Ports of
    `host` lie on the CPU always.
    """
    by_kind: dict[str, list[Port]] = {}
    for port in plan.ports:
        by_kind.setdefault(port.kind, []).append(port)
    bounds, pages = input_bounds(plan.graph), paged_reads(plan.graph)
    bounds |= {read.table: [(-1, BLOCKS)] for read in pages}
    quants = quantised_sources(plan)
    group = group_of(plan.graph)
    if group:  # a rank looks up ids that are moved to its own rows
        whole = {v.name: found for v, found in input_bounds(source).items()}
        bounds |= {v: whole[v.name] for v in plan.graph.inputs
                   if v not in bounds and v.name in whole}
    made = {
        "format": FORMAT,
        "name": source.name,
        "backend": identity.backend,
        "dtype": identity.dtype,
        "features": list(identity.features),
        "dims": [_dim_json(d, pages) for d in plan.dims],
        "inputs": [_input_json(p, bounds) for p in by_kind.get("input", [])],
        "state": [_input_json(p, bounds) for p in by_kind.get("state", [])],
        "paged": [{"positions": None if read.positions is None else read.positions.name,
                   "table": read.table.name, "block": read.block}
                  for read in pages if not read.sparse],
        "weights": [{"name": v.name, **type_json(_kept(v, quants))} for v in source.params],
        "params": [_param_json(p, plan) for p in by_kind.get("param", [])],
        "outputs": [{"name": f"output{i}", **type_json(p.value.type)}
                    for i, p in enumerate(by_kind.get("output", []))],
        "workspace_bytes": list(plan.workspace),
    }
    return made | ({"group": group} if group else {})


def group_of(graph: Graph) -> Json:
    """The rank that a graph is for and how many there are; empty where it is for one process."""
    found = next(iter(collectives_of(graph)), None)
    return {key: found.attr[key] for key in ("rank", "ranks")} if found else {}


def quantised_sources(plan: Plan) -> set[str]:
    """The weights of which quantised params are made."""
    return {name for p in plan.ports if p.kind == "param" and p.value.type.quant
            for name in source_names(plan.recipes.get(p.name), p.name)}


def _kept(weight: Value, quants: set[str]) -> TensorType:
    """The type of a weight, with the format that it was asked to have only where it has it."""
    return weight.type if weight.name in quants else weight.type.plain


def _input_json(port: Port, bounds: Bounds) -> Json:
    made: Json = {"name": port.name, **type_json(port.value.type)}
    if port.value in bounds:
        made["ranges"] = [[size_json(low), size_json(high)] for low, high in bounds[port.value]]
    if port.host:
        made["host"] = True
    return made


def _dim_json(dim: Dim, pages: Sequence[PagedRead]) -> Json:
    made: Json = {"name": dim.name, "lo": dim.lo, "hi": dim.hi}
    for read in pages:
        if read.slots == dim:
            made["equals"] = size_json(scaled(read.table.shape[1], read.block))
    return made


def _param_json(port: Port, plan: Plan) -> Json:
    made: Json = {"name": port.name, **type_json(port.value.type), "packed": port.packed}
    if port.name in plan.recipes:
        made["recipe"] = recipe_json(plan.recipes[port.name])
    return made


def input_bounds(graph: Graph) -> Bounds:
    """[lowest, highest + 1) of the i32 inputs that kernels index with, straight or through views:
    token ids, positions and rows. A call outside of any is refused before native code runs."""
    found: Bounds = {}
    _collect_bounds(graph, {v: v for v in graph.inputs}, found)
    return found


def _collect_bounds(graph: Graph, inputs: dict[Value, Value], found: Bounds) -> None:
    for node in graph.nodes:
        if node.name == "repeat" or (node.body is not None and node.op.is_operation):
            assert node.body is not None
            inner = {leaf: inputs[v] for leaf, v in zip(node.body.leaves, node.inputs, strict=False)
                     if v in inputs}
            _collect_bounds(node.body, inner, found)
            continue
        if node.op.kind == "view" and node.inputs[0] in inputs:
            inputs |= dict.fromkeys(node.outputs, inputs[node.inputs[0]])
        for index, bounds in _indexing(node.name, node.inputs).items():
            value = inputs.get(node.inputs[index])
            if value is not None and bounds not in found.setdefault(value, []):
                found[value].append(bounds)


def _indexing(name: str, inputs: Sequence[Value]) -> dict[int, tuple[Size, Size]]:
    """Which inputs of a kernel index another one, and the range that they may have."""
    match name:
        case "embedding":
            return {0: (0, inputs[1].shape[0])}
        case "kv_append":
            return {2: (-1, inputs[0].shape[1])}
        case "take_rows":
            return {1: (0, inputs[0].shape[1])}
        case "gather":
            return {1: (0, inputs[0].shape[0])}
        case "expert_linear":
            return {2: (0, inputs[1].shape[0])}
    return {}


def manifest_text(manifest: Json) -> str:
    """Deterministic JSON, one entry a line where it is long."""
    return json.dumps(manifest, indent=1, sort_keys=True) + "\n"


__all__ = ["FORMAT", "Identity", "group_of", "input_bounds", "manifest_of", "manifest_text",
           "quantised_sources", "size_json", "type_json"]
