"""Random inputs for a graph, and a run of a lowered graph in the reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphdsl.ir import FLOATS, Dim, Graph, Size, Value, size_value, terms
from graphdsl.layout import TABLE
from graphdsl.lazy import torch, torch_dtype
from graphdsl.reference import run

if TYPE_CHECKING:
    from torch import Generator, Tensor

SMALL = {"batch": 2, "tokens": 5, "slots": 11}
"""Sizes that are likely to show a mistake; other dims get sizes from 3 on."""

POSITIONED = {"kv_append": 2, "rope_append": 5, "norm_rope_append": 5, "rope_angles": 0}
"""Ops with an operand that says where tokens stand."""

COMPARISONS = {"less", "less_equal", "greater", "greater_equal"}

INDEXED = {"embedding": (0, 1, 0), "gather": (1, 0, 0), "take_rows": (1, 0, 1),
           "expert_linear": (2, 1, 0)}
"""Ops that look up rows: the operand with the numbers, the one with the rows, and its axis."""


@dataclass(frozen=True)
class Samples:
    """Tensors for every leaf of a graph, by name, and the sizes that they have."""

    inputs: Mapping[str, Tensor]
    params: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    dims: Mapping[str, int]


def samples(graph: Graph, seed: int, dims: Mapping[str, int] | None = None, *, past: int = 0,
            padded: bool = True) -> Samples:
    """Random tensors for `graph`: small sizes within the bounds of its dims, positions that fit
    the caches and begin at `past` (the last sequence is padded on the left if `padded`, and no
    row that is taken is of padding), indices that fit their tables."""
    generator = torch.Generator().manual_seed(seed)
    sizes = small_dims(graph) | dict(dims or {})
    found = list(_limits(graph))
    places = {leaf for leaf, limit in found if limit is None}
    limits = {leaf: limit for leaf, limit in found if limit is not None}

    def tensors(leaves: tuple[Value, ...]) -> dict[str, Tensor]:
        # Positions that rows are looked up by are never those of padding, which have no row.
        return {v.name: _positions(v, sizes, past, padded and v not in limits) if v in places
                else _sample(v, sizes, limits, generator) for v in leaves}

    inputs = tensors(graph.inputs)
    for node in graph.nodes:
        rows = inputs.get(node.inputs[1].name) if node.name == "take_rows" else None
        if padded and rows is not None and size_value(node.inputs[0].shape[1], sizes) > 1:
            inputs[node.inputs[1].name] = rows.clamp(min=1)
    return Samples(inputs, tensors(graph.params), tensors(graph.state), sizes)


def small_dims(graph: Graph) -> dict[str, int]:
    """A small size for every dim of the leaves' types, within its bounds."""
    found: dict[str, int] = {}
    for dim in (d for v in graph.leaves for size in v.shape for d in terms(size)):
        if dim.name not in found:
            found[dim.name] = _small(dim, 3 + len(found))
    return found


def _small(dim: Dim, wanted: int) -> int:
    return min(max(SMALL.get(dim.name, wanted), dim.lo), dim.hi)


def _sample(leaf: Value, dims: Mapping[str, int], limits: Mapping[Value, Size],
            generator: Generator) -> Tensor:
    shape = [size_value(size, dims) for size in leaf.shape]
    if leaf.dtype in FLOATS:
        made = torch.randn(shape, generator=generator)
        if leaf.is_param:
            # As a norm's weight, or such that a linear keeps the size of what it is given.
            made = made * shape[-1] ** -0.5 if len(shape) > 1 else 1 + 0.2 * made
        return made.to(torch_dtype(leaf.dtype))
    if leaf.dtype == "bool":
        return torch.rand(shape, generator=generator) < 0.7
    limit = size_value(limits.get(leaf, 4), dims)
    return torch.randint(0, limit, shape, generator=generator).int()


def _positions(leaf: Value, dims: Mapping[str, int], past: int, padded: bool) -> Tensor:
    """Token i at slot past + i; the last of several sequences begins with one token of padding."""
    shape = [size_value(size, dims) for size in leaf.shape]
    rows = torch.arange(shape[-1], dtype=torch.int32).add(past).expand(shape).clone()
    if padded and len(shape) > 1 and shape[0] > 1 and shape[-1] > 1:
        rows[-1] -= 1
        rows[-1, ..., 0] = -1
    return rows


def _limits(graph: Graph, known: dict[Value, Value] | None = None,
            ) -> Iterator[tuple[Value, Size | None]]:
    """What a leaf of whole numbers may hold: below a size, or (None) positions."""
    home = dict(known or {v: v for v in graph.leaves})
    for node in graph.nodes:
        if node.op.kind == "view" and node.inputs[0] in home:
            home.update(dict.fromkeys(node.outputs, home[node.inputs[0]]))
        if node.name in INDEXED:
            numbers, table, axis = INDEXED[node.name]
            if node.inputs[numbers] in home:
                yield home[node.inputs[numbers]], node.inputs[table].shape[axis]
        at = POSITIONED.get(node.name, 3 if "positions" in node.attr.get("given", ()) else None)
        if at is not None and node.inputs[at] in home:
            yield home[node.inputs[at]], None
        if node.body is not None and node.name != "repeat":
            pairs = zip(node.body.leaves, node.inputs, strict=True)
            yield from _limits(node.body, {a: home[b] for a, b in pairs if b in home})


def reference_outputs(graph: Graph, given: Samples, recipes: Mapping[str, Graph] | None = None,
                      *, exact: bool = True) -> list[Tensor]:
    """The outputs of a graph whose folded params are made by `recipes` first. A block table that
    a pass has added is zeros, for the reference does not read it, and none of the outputs."""
    params = dict(given.params)
    for name, recipe in (recipes or {}).items():
        params[name] = run(recipe, {}, given.params, exact=exact)[0]
    tables = {v.name: torch.zeros(size_value(v.shape[0], given.dims), 1, dtype=torch.int32)
              for v in graph.state if v.name == TABLE and v.name not in given.state}
    outputs = run(graph, given.inputs, params, {**given.state, **tables}, exact=exact)
    return outputs[:len(outputs) - len(tables)]


def without_padding(graph: Graph, given: Samples, outputs: Sequence[Tensor],
                    always: bool = False) -> list[Tensor]:
    """`outputs` of `graph` as they are compared. The rows of padding mean nothing: where a graph
    masks attention by its own maths, they are something else than the 0 of `attention`, so in a
    graph that compares numbers, or `always`, they become 0 in every result [batch, tokens, ...].
    """
    positions = [v for v, limit in _limits(graph) if limit is None and v in graph.inputs]
    compared = list(outputs)
    for i, value in enumerate(graph.results if always or _compares(graph) else ()):
        for leaf in positions:
            if value.shape[:2] == leaf.shape:
                padding = given.inputs[leaf.name] < 0
                wide = padding.reshape(*padding.shape, *[1] * (len(value.shape) - 2))
                compared[i] = compared[i].masked_fill(wide, 0)
    return compared


def _compares(graph: Graph) -> bool:
    return any(n.name in COMPARISONS or (n.body is not None and _compares(n.body))
               for n in graph.nodes)
