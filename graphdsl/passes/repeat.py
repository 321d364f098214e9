"""repeat: a body run for a number of turns, each with its own state and params.

Operands are plain values: carried, invariant, then the state of every turn, then the params of
every turn. Outputs: carried, then the new state of every turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from graphdsl.ir import Graph, Node, Value
from graphdsl.op import Op


def through_body(*_: Any) -> Any:
    """Stands for the function of an op whose every node has a body of its own."""
    raise AssertionError("this op runs through its body")


REPEAT = Op("repeat", through_body)

T = TypeVar("T")


@dataclass(frozen=True)
class Operands(Generic[T]):
    """What a repeat reads; `state` and `params` are one row a turn."""

    carried: tuple[T, ...]
    invariant: tuple[T, ...]
    state: tuple[tuple[T, ...], ...]
    params: tuple[tuple[T, ...], ...]


def operands_of(node: Node, items: Sequence[T]) -> Operands[T]:
    """`items` (one for every input of `node`) by their role."""
    assert node.body is not None
    turns, carried = node.attr["turns"], node.attr["carried"]
    inputs, states, params = (len(x) for x in (node.body.inputs, node.body.state,
                                               node.body.params))

    def rows(start: int, width: int) -> tuple[tuple[T, ...], ...]:
        return tuple(tuple(items[start + i * width:start + (i + 1) * width])
                     for i in range(turns))

    return Operands(tuple(items[:carried]), tuple(items[carried:inputs]), rows(inputs, states),
                    rows(inputs + turns * states, params))


def make_repeat(body: Graph, operands: Operands[Value], like: Node) -> Node:
    """A repeat of `body`, whose first inputs and outputs are the carried values; line, scope and
    origin are those of `like`."""
    carried = len(operands.carried)
    turns = len(operands.params)
    out_types = [v.type for v in body.outputs[:carried]]
    out_types += [v.type for v in body.outputs[carried:]] * turns
    inputs = (*operands.carried, *operands.invariant,
              *(v for row in operands.state for v in row),
              *(v for row in operands.params for v in row))
    return Node(REPEAT, inputs, (("carried", carried), ("turns", turns)), tuple(out_types), body,
                like.loc, like.scope, like.origin)
