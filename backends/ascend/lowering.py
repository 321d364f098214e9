"""From a lowered graph to an atb.Program: its ports, its phases, and what they share."""

from __future__ import annotations

from graphdsl.errors import GraphError
from graphdsl.expr import Poly
from graphdsl.ir import Dim, Graph, TensorType, Value
from graphdsl.layout import TABLE
from graphdsl.ops.attention import attention
from graphdsl.ops.shape import take_rows

from . import atb
from .angles import gathered, ropes
from .atb import Phase, Prepared, Program, Tensor
from .lowering_attention import check_mask, operands_of
from .lowering_graph import Axes, Setting, Shape, cache_shape, source_of, weight
from .lowering_phase import Wide, phase_of
from .lowering_shared import shared
from .target import check_soc

NARROW = ("f16", "bf16")
POSITIONED = ("attention", "kv_append")


def program_of(graph: Graph, soc: str) -> Program:
    """The program that runs a graph.

    Raises GraphError, at the user's line, for what ATB does not have.
    """
    check_soc(soc)
    dtype = _dtype(graph, soc)
    axes, sizes = _axes(graph)
    _check_masks(graph)
    ports = _ports(graph, axes, soc)
    wides = _wides(graph, dtype)
    prepared: dict[str, Prepared] = {}
    kept: dict[str, Tensor] = {}
    results = tuple(Tensor(f"output{i}", v.dtype, axes.matrix(source_of(v)))
                    for i, v in enumerate(graph.results))
    taken = frozenset(tensor.name for tensor in (*ports.values(), *results))
    phases: list[Phase] = []
    for name in _phase_names(graph):
        setting = Setting(name, soc, dtype, axes, dict(ports), taken, prepared)
        phase, tensors = phase_of(graph, setting, wides)
        phases.append(phase)
        kept |= tensors
    return Program(graph.name, (*ports.values(), *results), tuple(prepared.values()),
                   tuple(kept.values()), shared(phases), dtype, sizes)


def _dtype(graph: Graph, soc: str) -> str:
    """The 16-bit float that a graph computes in. Raises GraphError where it is f32, or there are
    two, or the SoC has not the one."""
    leaves = (*graph.state, *graph.params, *graph.inputs)
    found = list(dict.fromkeys(v.dtype for v in leaves if v.dtype in NARROW))
    if not found:
        raise GraphError(f"{graph.name} computes in f32: ATB's norms, rope and attention have f16 "
                         "and bf16 only", hint="--dtype f16")
    if len(found) > 1:
        raise GraphError(f"{graph.name} has values of f16 and of bf16: ATB's operations take one "
                         "dtype, and nothing casts between them", hint="--dtype f16")
    if found == ["bf16"] and soc == "310p":
        raise GraphError(f"{graph.name} computes in bf16, which a 310p has not",
                         hint="--dtype f16, or --soc 910b")
    return found[0]


def _inner(graph: Graph) -> list[Graph]:
    """The graph and the bodies of its repeats."""
    bodies = [n.body for n in graph.nodes if n.name == "repeat" and n.body is not None]
    return [graph, *(inner for body in bodies for inner in _inner(body))]


def _axes(graph: Graph) -> tuple[Axes, tuple[tuple[Dim, Poly], ...]]:
    """Which leading sizes are rows, and what the dims of the program are in those of the
    manifest."""
    nodes = [n for part in _inner(graph) for n in part.nodes]
    placed = next((operands_of(n)["positions"] for n in nodes
                   if n.name in POSITIONED and "positions" in operands_of(n)), None)
    rows = placed.shape if placed is not None else _first_rows(graph)
    leads: dict[Shape, Dim] = {rows: atb.ROWS}
    count = _elements(rows)
    sizes = {atb.ROWS: count, atb.QUERIES: count, atb.SEQUENCES: Poly.of(rows[0]),
             atb.TOKENS: _elements(rows[1:])}
    for node in nodes:
        if node.op is take_rows:
            picked = node.inputs[1].shape
            if leads.setdefault(picked, atb.PICKED) is atb.PICKED:
                sizes[atb.PICKED] = _elements(picked)
    caches = [v for v in graph.state if v.type.layout]
    if caches:
        sizes[atb.SLOTS] = Poly.of(caches[0].shape[1])
    return Axes(leads), tuple(sizes.items())


def _elements(shape: Shape) -> Poly:
    total = Poly.of(1)
    for size in shape:
        total = total * size
    return total


def _first_rows(graph: Graph) -> Shape:
    """The sizes of the first input that are no numbers."""
    shape = graph.inputs[0].shape if graph.inputs else ()
    symbolic = [i for i, size in enumerate(shape) if not isinstance(size, int)]
    count = symbolic[-1] + 1 if symbolic else len(shape) - 1
    if count < 1:
        raise GraphError(f"{graph.name} has no tokens: its first input is "
                         f"{graph.inputs[0].type if graph.inputs else 'missing'}",
                         hint='signature = "x[batch, tokens, hidden] -> y[batch, tokens, hidden]"')
    return shape[:count]


def _check_masks(graph: Graph) -> None:
    """Raises GraphError for attention with a mask that is not one that a caller may give."""
    paged = "contiguous" not in _phase_names(graph)
    for node in (n for part in _inner(graph) for n in part.nodes if n.op is attention):
        check_mask(node, paged)


def _ports(graph: Graph, axes: Axes, soc: str) -> dict[Value, Tensor]:
    """Inputs, state and params as ATB sees them."""
    return {v: _port(v, axes, soc) for v in graph.leaves}


def _port(value: Value, axes: Axes, soc: str) -> Tensor:
    type: TensorType = value.type
    if type.layout:
        return Tensor(value.name, value.dtype, cache_shape(type, soc),
                      "nz" if soc == "310p" else "nd")
    if value.name == TABLE and value.kind == "state":
        return Tensor(value.name, value.dtype, (atb.SEQUENCES, atb.PAGES), host=True)
    if value.is_param:
        return weight(value)
    if value.dtype == "bool":  # of attention, which is given what the host makes of it
        return Tensor(value.name, value.dtype, value.shape, host=True)
    return Tensor(value.name, value.dtype, axes.matrix(value), host=value.dtype == "i32")


def _wides(graph: Graph, dtype: str) -> dict[tuple[Value, bool], Wide]:
    """The angles that ropes read, in the full width and the dtype that ATB's Rope takes: f32 beside
    f16 where they come from a table, for Concat has no f32."""
    wides: dict[tuple[Value, bool], Wide] = {}
    for node, resolve in ropes(graph):
        for half in map(resolve, node.inputs[1:]):
            row = gathered(half)
            wide = "f32" if row and dtype == "f16" else dtype
            name = row.inputs[1].name.split(".")[1] if row else half.name or "angles"
            width = half.shape[2]
            assert isinstance(width, int)
            value = Value(TensorType((*half.shape[:2], 2 * width), wide), name=name)
            wides.setdefault((half, node.attr["interleaved"]), Wide(value, row, node))
    return wides


def _phase_names(graph: Graph) -> tuple[str, ...]:
    """The phases of a graph, by the policy of its caches."""
    caches = [v for v in graph.state if v.type.layout]
    policies = dict.fromkeys(v.type.layout.policy for v in caches if v.type.layout)
    if len(policies) > 1:
        raise GraphError(f"{graph.name} has caches of {' and of '.join(policies)} policy",
                         next((v.type.layout.loc for v in caches if v.type.layout), None),
                         "give all caches one policy")
    if "paged" in policies:
        return ("prefill", "decode")
    return ("contiguous",) if policies else ("decode",)


__all__ = ["program_of"]
