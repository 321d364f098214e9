"""What every backend makes of a lowered graph: its tensors and dims, which the manifest lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graphdsl.ir import Dim, Graph, Size, Value, terms


@dataclass(frozen=True)
class Port:
    """A tensor that the caller gives: its place in the pointer table is its place in the plan."""

    value: Value
    kind: str
    packed: bool = False
    host: bool = False
    """The host reads its values, on whatever device the rest is."""

    @property
    def name(self) -> str:
        return self.value.name


@dataclass(frozen=True)
class Plan:
    """What a library takes, gives and needs; a backend adds how it computes. The pointer table
    holds inputs, state, params, results."""

    graph: Graph
    recipes: Mapping[str, Graph]
    ports: tuple[Port, ...]
    dims: tuple[Dim, ...]
    step_dims: tuple[Dim, ...]

    @property
    def workspace(self) -> tuple[str, ...]:
        """C text of the bytes of every buffer of a workspace that the caller gives."""
        return ()


def ports_of(graph: Graph, packed: frozenset[Value] = frozenset(),
             host: frozenset[Value] = frozenset()) -> tuple[Port, ...]:
    """The pointer table of `graph`, in which the params of `packed` have a backend's own format
    and the inputs and states of `host` are read by the host."""
    return (*(Port(v, "input", host=v in host) for v in graph.inputs),
            *(Port(v, "state", host=v in host) for v in graph.state),
            *(Port(v, "param", v in packed) for v in graph.params),
            *(Port(v, "output") for v in graph.results))


def dims_of(graph: Graph, more: Iterable[Dim] = ()) -> tuple[tuple[Dim, ...], tuple[Dim, ...]]:
    """The dims of the leaves, logically and in memory, and `more`, by name: those that shapes
    settle, and those that a step reads from an input."""
    leaves = {d for v in graph.leaves for s in _sizes(v) for d in terms(s)}
    found = sorted(leaves | set(more), key=lambda d: d.name)
    return tuple(d for d in found if not d.source), tuple(d for d in found if d.source)


def _sizes(value: Value) -> tuple[Size, ...]:
    """The sizes that a leaf has, logically and in memory: a paged cache has blocks there."""
    layout = value.type.layout
    return (*value.shape, *layout.physical(value.shape)) if layout else value.shape


__all__ = ["Plan", "Port", "dims_of", "ports_of"]
