"""Rotary angles that come from positions become rows of a table, which is made when weights are
loaded: ATB casts no whole numbers, and one gather a step is less work than sines.

A table has the full width that ATB's Rope takes, every angle twice. In the IR its rows are cut back
to the half that rope takes, so that the graph means what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from graphdsl.errors import GraphError
from graphdsl.ir import Affine, Dim, Graph, Node, Size, Value, constant, scaled, terms
from graphdsl.layout import MOST_SLOTS
from graphdsl.op import Op, constant_of
from graphdsl.ops.linear import embedding
from graphdsl.ops.math import maximum
from graphdsl.ops.position import rope
from graphdsl.ops.shape import arange, concat, gather, reshape, slice
from graphdsl.passes.base import Fired, Result, Target
from graphdsl.passes.repeat import REPEAT, operands_of
from graphdsl.passes.rewrite import clone, inline, substitute

ROWS = 32768
RULE = "AngleTable"
UNTABLED = (REPEAT, embedding, gather)
"""What angles are not made of where they are looked up: a table of the user's own has its own
number of rows."""

Resolve = Callable[[Value], Value]


@dataclass(frozen=True)
class AngleTable:
    """Looks the angles that are made of positions up in tables of so many `rows`: the positions
    that a sequence may have.

    Raises GraphError for a number of rows that no cache has, and for angles that both kinds of
    rope read.
    """

    name: ClassVar[str] = "angle_table"
    rules: ClassVar[tuple[str, ...]] = (RULE,)
    rows: int = ROWS

    def __post_init__(self) -> None:
        if not 1 <= self.rows <= MOST_SLOTS:
            raise GraphError(f"--pass {self.name}:rows={self.rows}: wanted 1 to {MOST_SLOTS}, a "
                             "row for every position", hint=f"the default is {ROWS}")

    def run(self, graph: Graph, target: Target) -> Result:
        new: dict[Value, Value] = {}
        tables: dict[str, Value] = {}
        made: dict[str, Graph] = {}
        fired: list[Fired] = []
        taken = {v.name for v in graph.leaves}
        for value, interleaved in _kinds(graph).items():
            positions = _positions(graph, value)
            if positions is None or value.node is None:
                continue
            name = _free_name(f"angles.{value.node.name}", taken | set(made))
            made[name] = _recipe(graph, name, value, _Rows(positions, self.rows, interleaved))
            tables[name] = Value(made[name].outputs[0].type, name=name, kind="param")
            new[value] = _half(positions, tables[name], interleaved, value.node)
            fired.append(Fired(RULE, value.node.loc, value.node.scope))
        if not new:
            return Result(graph)
        changed = substitute(graph, new)
        kept = tuple(p for p in graph.params if p in changed.users)
        return Result(replace(changed, params=(*kept, *tables.values())), tuple(fired), (), made)


def gathered(value: Value) -> Node | None:
    """The embedding of the full width that `value`, a half, is cut from, if it comes from one of
    our tables."""
    node = value.node
    while node is not None and node.op in (slice, reshape):
        node = node.inputs[0].node
    return node if node is not None and node.op is embedding and RULE in node.origin else None


def ropes(graph: Graph, resolve: Resolve = lambda value: value) -> Iterator[tuple[Node, Resolve]]:
    """The ropes of a graph and of the bodies of its repeats, each with what tells of a value that
    it reads which value of the outer graph it is."""
    for node in graph.nodes:
        if node.op is rope:
            yield node, resolve
        if node.op is REPEAT and node.body is not None:
            yield from ropes(node.body, inside(node))


def inside(node: Node) -> Resolve:
    """Of a leaf of a repeat's body that is the same in every turn, the value that it is; other
    values are themselves."""
    assert node.body is not None
    operands = operands_of(node, node.inputs)
    leaves = node.body.inputs[len(operands.carried):]
    known = dict(zip(leaves, operands.invariant, strict=True))
    return lambda value: known.get(value, value)


def _kinds(graph: Graph) -> dict[Value, bool]:
    """The angles that ropes read, and whether these are interleaved."""
    kinds: dict[Value, bool] = {}
    for node, resolve in ropes(graph):
        interleaved = node.attr["interleaved"]
        for value in map(resolve, node.inputs[1:]):
            if kinds.setdefault(value, interleaved) != interleaved:
                raise GraphError("angles are read by an interleaved rope and by one that is not",
                                 node.loc, "ATB wants every angle twice, in an order that differs: "
                                 "compute the angles of each on their own")
    return kinds


def _positions(graph: Graph, value: Value) -> Value | None:
    """The input [batch, tokens] of whole numbers that `value` is made of, if nothing but params
    and numbers is needed beside it."""
    alone = replace(graph, outputs=(value,), state=())
    read = [v for v in (*graph.inputs, *graph.state) if v in alone.users and v is not value]
    if value.node is None or len(read) != 1 or any(n.op in UNTABLED for n in alone.nodes):
        return None
    positions = read[0]
    fits = (positions.dtype == "i32" and len(positions.shape) == 2
            and all(isinstance(size, Dim) for size in positions.shape)
            and value.shape[:2] == positions.shape and len(value.shape) == 3)
    return positions if fits else None


@dataclass(frozen=True)
class _Rows:
    """What a table is made for."""

    positions: Value
    longest: int
    interleaved: bool

    def size(self, size: Size) -> Size:
        """A size of the angles of a step, as it is in a table: one sequence with all positions."""
        batch, tokens = self.positions.shape
        total: Size = constant(size)
        for dim, k in terms(size).items():
            known = {batch: 1, tokens: self.longest}.get(dim, dim)
            total = scaled(known, k) + total
        return total

    def attribute(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self.attribute, value))
        return self.size(value) if isinstance(value, Dim | Affine) else value

    def copied(self, node: Node, inputs: tuple[Value, ...]) -> Node:
        attrs = {name: self.attribute(value) for name, value in node.attrs}
        return node.op.apply(inputs, attrs, node.loc, node.scope, node.origin)


def _recipe(graph: Graph, name: str, value: Value, rows: _Rows) -> Graph:
    """The graph of params that makes a table, [positions, 2 * angles]."""
    assert value.node is not None
    alone = replace(graph, name=name, outputs=(value,), state=())
    while any(n.op.is_operation for n in alone.nodes):
        alone = inline(alone, lambda node: node.op.is_operation)
    like = value.node
    count = _made(arange, like, size=rows.longest, dtype="i32")
    arguments = [_made(reshape, like, count, shape=(1, rows.longest)) if v is rows.positions
                 else v for v in alone.leaves]
    angles = clone(alone, arguments, rows.copied)[0]
    table = _twice(angles, rows, like)
    made = Graph(name, (), graph.params, (), (table,))
    return replace(made, params=tuple(p for p in made.params if p in made.users))


def _twice(angles: Value, rows: _Rows, like: Node) -> Value:
    """Angles [1, positions, r] as [positions, 2r]: the halves are equal, or when interleaved those
    of every pair."""
    width = angles.shape[-1]
    flat = (rows.longest, width, 1) if rows.interleaved else (rows.longest, width)
    once = _made(reshape, like, angles, shape=flat)
    both = _made(concat, like, once, once, axis=len(flat) - 1)
    if not rows.interleaved:
        return both
    return _made(reshape, like, both, shape=(rows.longest, scaled(width, 2)))


def _half(positions: Value, table: Value, interleaved: bool, like: Node) -> Value:
    """The angles of every token as rope takes them. Padding, at -1, has those of the first row."""
    first = constant_of(0, "i32", like.loc)
    full = _made(embedding, like, _made(maximum, like, positions, first), table)
    (batch, tokens, width) = full.shape
    assert isinstance(width, int)
    if not interleaved:
        return _made(slice, like, full, axis=2, start=0, size=width // 2)
    pairs = _made(reshape, like, full, shape=(batch, tokens, width // 2, 2))
    once = _made(slice, like, pairs, axis=3, start=0, size=1)
    return _made(reshape, like, once, shape=(batch, tokens, width // 2))


def _made(op: Op, like: Node, *inputs: Value, **attrs: Any) -> Value:
    origin = tuple(dict.fromkeys((*like.origin, RULE)))
    return op.apply(inputs, attrs, like.loc, like.scope, origin).outputs[0]


def _free_name(base: str, taken: set[str]) -> str:
    number = 0
    while f"{base}.{number}" in taken:
        number += 1
    return f"{base}.{number}"


__all__ = ["AngleTable", "gathered", "inside", "ropes"]
