"""Many graphs as one, so that all of them are built as a single library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from graphdsl.builder import BuildOptions, build_graph
from graphdsl.ir import Dim, Graph, Value, terms
from graphdsl.passes.rewrite import clone
from graphdsl.passes.samples import Samples, reference_outputs, samples, without_padding
from graphdsl.reference import TOLERANCE, error_of, run
from graphdsl.runtime.caches import Filled
from graphdsl.runtime.operator import Operator

T = TypeVar("T")


def bundle(graphs: Sequence[Graph], name: str = "bundle") -> Graph:
    """One graph that computes all of `graphs`.

    Leaf L of graph i is called g{i}.L; dims of one name are one dim, so they have to have the same
    bounds. The results of all graphs come first, then the new states of all: `unbundled` takes
    them apart again. Raises ValueError for dims that contradict, and for a dim that is read from
    an input.
    """
    _check_dims(graphs)
    own = [{v: replace(v, name=f"g{i}.{v.name}") for v in graph.leaves}
           for i, graph in enumerate(graphs)]
    made = [clone(graph, (leaves[v] for v in graph.leaves))
            for graph, leaves in zip(graphs, own, strict=True)]
    results = [v for graph, outputs in zip(graphs, made, strict=True)
               for v in outputs[: len(graph.results)]]
    new_state = [v for graph, outputs in zip(graphs, made, strict=True)
                 for v in outputs[len(graph.results):]]

    def joined(kind: str) -> tuple[Value, ...]:
        return tuple(leaves[v] for graph, leaves in zip(graphs, own, strict=True)
                     for v in getattr(graph, kind))

    return Graph(name, joined("inputs"), joined("params"), joined("state"),
                 (*results, *new_state))


def _check_dims(graphs: Sequence[Graph]) -> None:
    known: dict[str, Dim] = {}
    for dim in (d for graph in graphs for d in _dims(graph)):
        if dim.source:
            raise ValueError(f"dim {dim.name} is read from {dim.source}")
        if known.setdefault(dim.name, dim) != dim:
            raise ValueError(f"dim {dim.name} is {known[dim.name]!r} and {dim!r}")


def _dims(graph: Graph) -> Iterator[Dim]:
    values = (*graph.leaves, *(v for n in graph.nodes for v in n.outputs))
    return (d for v in values for size in v.shape for d in terms(size))


def unbundled(graphs: Sequence[Graph], outputs: Sequence[T]) -> list[list[T]]:
    """What a bundle returned, graph by graph: the results of each, then its new state."""
    left = iter(outputs)
    results = [[next(left) for _ in graph.results] for graph in graphs]
    return [[*own, *(next(left) for _ in graph.state)]
            for own, graph in zip(results, graphs, strict=True)]


def part_of(index: int, tensors: Mapping[str, T]) -> dict[str, T]:
    """What belongs to graph `index`, under the names that it has there."""
    prefix = f"g{index}."
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def with_prefix(index: int, tensors: Mapping[str, T]) -> dict[str, T]:
    """The leaves of graph `index` under the names that they have in a bundle."""
    return {f"g{index}.{name}": tensor for name, tensor in tensors.items()}


def built_outputs(operator: Operator, graph: Graph, given: Samples) -> list[Tensor]:
    """Results, then new state in its logical shape, of a built graph."""
    filled = Filled.of(operator.manifest, given.inputs, given.dims)
    state = filled.state(given.state)
    found = operator.run(filled.inputs(given.inputs), operator.pack_weights(given.params),
                         [state[port.name] for port in operator.state])
    caches = filled.caches(state)
    return [*found, *(caches[v.name] for v in graph.state)]


Outcome = tuple[list[Tensor], list[Tensor], list[Tensor]]
"""What was built gives, what the reference gives, and that in f64."""


def outcome(operator: Operator, graph: Graph, given: Samples) -> Outcome:
    """The outputs of a built graph (new state included), and what they should be."""
    filled = Filled.of(operator.manifest, given.inputs, given.dims)
    given = replace(given, state=filled.held(given.state))
    return (built_outputs(operator, graph, given),
            run(graph, given.inputs, given.params, given.state), reference_outputs(graph, given))


def excess(graph: Graph, given: Samples, found: Outcome) -> list[float]:
    """How much further every output is from the exact result than the reference, which rounds
    after every kernel, is itself."""
    ours, theirs, best = (without_padding(graph, given, outputs) for outputs in found)
    return [error_of(a, c) - error_of(b, c) for a, b, c in zip(ours, theirs, best, strict=True)]


def outcomes(operator: Operator, graphs: Sequence[Graph], whole: Graph,
             given: Samples) -> Iterator[tuple[Graph, Samples, Outcome]]:
    """Every graph of a bundle, what it was given and what came of it."""
    parts = zip(*(unbundled(graphs, outputs) for outputs in outcome(operator, whole, given)),
                strict=True)
    for i, (graph, outputs) in enumerate(zip(graphs, parts, strict=True)):
        own = Samples(part_of(i, given.inputs), part_of(i, given.params), part_of(i, given.state),
                      given.dims)
        yield graph, own, outputs


def bundle_excess(operator: Operator, graphs: Sequence[Graph], whole: Graph,
                  given: Samples) -> list[float]:
    """The worst of every graph of a bundle, less the worst error of the reference in that graph:
    where one value of it is rounded far, so may the others be."""
    found = []
    for graph, own, outputs in outcomes(operator, graphs, whole, given):
        rounded, exact = (without_padding(graph, own, tensors) for tensors in outputs[1:])
        found.append(max(excess(graph, own, outputs)) - max(map(error_of, rounded, exact)))
    return found


def drawn(graph: Graph, seed: int, dims: Mapping[str, int]) -> Samples:
    """Random tensors for a graph. Every row of a mask sees its first key: what a row is that sees
    none is up to who writes it."""
    given = samples(graph, seed, dims)
    for tensor in given.inputs.values():
        if tensor.dtype == torch.bool:
            tensor[..., 0] = True
    return given


def compare_bundle(graphs: Sequence[Graph], options: BuildOptions, dtype: str = "f32",
                   sizes: Sequence[Mapping[str, int]] = ({},), threads: Sequence[int] = (2,),
                   seed: int = 0) -> Operator:
    """Builds many graphs as one library and compares each with the reference, for several sizes
    and thread counts. An assertion that fails names the graphs that are wrong."""
    whole = bundle(graphs)
    operator = Operator(Path(build_graph(whole, replace(options, dtype=dtype)).path))
    before = torch.get_num_threads()
    for count in threads:
        torch.set_num_threads(count)
        for dims in sizes:
            errors = bundle_excess(operator, graphs, whole, drawn(whole, seed, dims))
            wrong = {i: (graphs[i].name, found) for i, found in enumerate(errors)
                     if not found <= TOLERANCE[dtype]}
            assert not wrong, (dims, count, wrong)
    torch.set_num_threads(before)
    return operator
