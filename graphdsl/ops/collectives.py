"""Collectives: what the processes of a tensor-parallel run give one another.

A graph is that of one rank; `rank` and `ranks` say which, of how many. All ranks run the same
collectives in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphdsl.errors import GraphError
from graphdsl.ir import FLOATS, Graph, Node, TensorType, scaled
from graphdsl.lazy import torch
from graphdsl.op import kernel
from graphdsl.ops.linear import wide

if TYPE_CHECKING:
    from torch import Tensor

Types = Sequence[TensorType]


def _check(types: Types, attrs: Mapping[str, Any]) -> None:
    """Raises GraphError for a rank that is none, and for what is no tensor of floats."""
    rank, ranks = attrs["rank"], attrs["ranks"]
    if not isinstance(ranks, int) or not isinstance(rank, int) or not 0 <= rank < ranks:
        raise GraphError(f"rank is {rank!r} of {ranks!r}, wanted one of 0 to ranks - 1")
    if types[0].dtype not in FLOATS or not types[0].shape:
        raise GraphError(f"x is {types[0]}, wanted floats with at least one axis")


def _reduced(types: Types, attrs: dict[str, Any]) -> tuple[TensorType, ...]:
    _check(types, attrs)
    return (TensorType(types[0].shape, types[0].dtype),)


def _gathered(types: Types, attrs: dict[str, Any]) -> tuple[TensorType, ...]:
    _check(types, attrs)
    shape, axis = types[0].shape, attrs["axis"]
    if not isinstance(axis, int) or not -len(shape) <= axis < len(shape):
        raise GraphError(f"no axis {axis!r} in {types[0]}")
    at = axis % len(shape)
    grown = (*shape[:at], scaled(shape[at], attrs["ranks"]), *shape[at + 1:])
    return (TensorType(grown, types[0].dtype),)


@kernel(infer=_reduced)
def all_reduce(x: Tensor, *, rank: int, ranks: int) -> Tensor:
    """The sum of every rank's x, the same bits on every rank; floats. Numbers of 16 bits are added
    up in f32 and rounded once."""
    return _alone("all_reduce", x, rank, ranks)


@kernel(infer=_gathered)
def all_gather(x: Tensor, *, rank: int, ranks: int, axis: int = -1) -> Tensor:
    """Every rank's x, one after the other along `axis` in the order of the ranks; floats."""
    return _alone("all_gather", x, rank, ranks)


def _alone(name: str, x: Tensor, rank: int, ranks: int) -> Tensor:
    """A collective of a single rank gives back what it is given."""
    if ranks == 1:
        return x
    raise GraphError(f"{name}: rank {rank} alone has nothing from the other {ranks - 1}",
                     hint="graphdsl.ranks.run_ranks runs the graphs of all ranks together")


COLLECTIVES = (all_reduce, all_gather)


def exchanged(node: Node, given: Sequence[Tensor]) -> Tensor:
    """What a collective gives to every rank, from the operand of each in the order of the ranks."""
    if node.op is all_gather:
        return torch.cat(list(given), node.attr["axis"])
    total = wide(given[0])
    for x in given[1:]:
        total = total + wide(x)
    return total.to(given[0].dtype)


def collectives_of(graph: Graph) -> list[Node]:
    """The collectives of a graph, those in bodies included, in order; a body that is run for
    several turns counts once."""
    found: list[Node] = []
    for node in graph.nodes:
        if node.op in COLLECTIVES:
            found.append(node)
        elif node.body is not None:
            found += collectives_of(node.body)
    return found
