"""Graphs that are equal but for their names become one, which runs with other tensors each time:
layers that are not rolled are compiled once where they do the same.

What is shared is the user's same lines: a comment of a shared graph says where its operations come
from, with `layers.*` for whichever layer it is.
"""

from __future__ import annotations

import re
from collections.abc import Container, Hashable, Sequence
from dataclasses import replace
from typing import Any

from . import atb
from .atb import Graph, Phase, Tensor
from .lowering_graph import free_name

NUMBERED = re.compile(r"^((?:[A-Za-z_]\w*\.)*?[A-Za-z_]\w*\.)\d+(?=[. ]|$)")
"""A layer of a list of layers, at the start of an origin."""


def shared(phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """The phases, with one graph for all that are equal but for names: it and its tensors are
    called what they have in common."""
    groups: dict[Hashable, dict[Graph, None]] = {}
    for graph in (run.graph for phase in phases for run in phase.runs):
        groups.setdefault(_structure(graph), {})[graph] = None
    new = {graph: graph for group in groups.values() for graph in group if len(group) == 1}
    taken = {graph.name for graph in new}
    for group in groups.values():
        if len(group) > 1:
            made = _common(list(group), taken)
            taken.add(made.name)
            new |= dict.fromkeys(group, made)
    return tuple(replace(phase, runs=tuple(replace(run, graph=new[run.graph])
                                           for run in phase.runs)) for phase in phases)


def _structure(graph: Graph) -> Hashable:
    """All of a graph but names and which layer it is."""
    ids = {tensor: i for i, tensor in enumerate(graph.tensors)}
    nodes = [(replace(node, inputs=(), outputs=(), origin=_any_layer(node.origin)),
              tuple(ids[t] for t in node.inputs), tuple(ids[t] for t in node.outputs))
             for node in graph.nodes]
    tensors = (replace(tensor, name="") for tensor in graph.tensors)
    return len(graph.inputs), len(graph.outputs), tuple(tensors), tuple(nodes)


def _any_layer(origin: str) -> str:
    """`layers.* <- Rule` for `layers.3 <- Rule`."""
    return NUMBERED.sub(r"\1*", origin)


def _common(graphs: Sequence[Graph], others: Container[str]) -> Graph:
    """The graph that stands for some that are equal but for names, with a name of its own."""
    first = graphs[0]
    new: dict[Tensor, Tensor] = {}
    taken: set[str] = set()
    for same in zip(*(graph.tensors for graph in graphs), strict=True):
        name = free_name(_common_name([tensor.name for tensor in same]), taken)
        new[same[0]] = replace(same[0], name=name)
        taken.add(name)
    nodes = (_renamed(node, new) for node in first.nodes)
    inputs, outputs = (tuple(new[t] for t in own) for own in (first.inputs, first.outputs))
    title = free_name(_common_name([graph.name for graph in graphs]), others)
    return Graph(title, inputs, outputs, tuple(nodes))


def _common_name(names: Sequence[str]) -> str:
    """The parts that all names have: `layers_wo` of `layers_0_wo` and `layers_1_wo`."""
    columns: Any = zip(*(name.split("_") for name in names), strict=False)
    parts = [column[0] for column in columns if len(set(column)) == 1]
    return "_".join(parts) or "tensor"


def _renamed(node: atb.Node, new: dict[Tensor, Tensor]) -> atb.Node:
    inputs, outputs = (tuple(new[t] for t in own) for own in (node.inputs, node.outputs))
    return replace(node, inputs=inputs, outputs=outputs, origin=_any_layer(node.origin))


__all__ = ["shared"]
