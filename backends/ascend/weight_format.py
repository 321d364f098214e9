"""Which weights lie in tiles of 16 columns (NZ), as the matmuls of a 310P read them fastest.

The format is a part of a param's type: writer and reader share it. Values are those of the rows;
the library packs them when weights are bound.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from graphdsl.ir import Graph, Node, Value
from graphdsl.layout import NZ_WIDTH
from graphdsl.passes.base import Fired, Missed, Result, Target
from graphdsl.passes.repeat import REPEAT, operands_of
from graphdsl.passes.rewrite import substitute

RULE = "WeightFormat"
FORMATS = ("nd", "nz")
LINEARS = ("linear", "matmul_nt")
"""What becomes ATB's Linear: operand 1 is the weight."""
NARROW = ("f16", "bf16")


@dataclass(frozen=True)
class Use:
    """A node that reads a value, and as which operand; a result of the graph has no node."""

    node: Node | None
    operand: int

    @property
    def is_weight(self) -> bool:
        return self.node is not None and self.node.name in LINEARS and self.operand == 1

    def __str__(self) -> str:
        return f"{self.node.name} at {self.node.loc}" if self.node else "a result"


@dataclass(frozen=True)
class WeightFormat:
    """With nz, puts into tiles every weight that Linears alone read, if it has 16 bits and whole
    tiles; reports why another stays as it is."""

    name: ClassVar[str] = "weight_format"
    rules: ClassVar[tuple[str, ...]] = (RULE,)
    format: str = field(default="nd", metadata={"choices": FORMATS})

    def run(self, graph: Graph, target: Target) -> Result:
        if self.format == "nd":
            return Result(graph)
        uses = _uses(graph)
        weights = [p for p in graph.params if any(u.is_weight for u in uses.get(p, ()))
                   and p.type.format != "nz"]
        reasons = {p: reason for p in weights if (reason := _reason(p, uses[p]))}
        reasons = _shared(graph, weights, reasons)
        tiled = [p for p in weights if p not in reasons]
        linears = _linears(uses, tiled)
        fired = tuple(Fired(RULE, node.loc, node.scope) for node in linears)
        missed = tuple(Missed(RULE, node.loc, node.scope, reasons[p])
                       for node, p in _linears(uses, list(reasons)).items())
        return Result(_tiled(graph, set(tiled)) if tiled else graph, fired, missed)


def _uses(graph: Graph) -> dict[Value, list[Use]]:
    """Who reads every value. Params of a repeat's turns are read by the nodes of its body."""
    found: dict[Value, list[Use]] = {}
    for node in graph.nodes:
        own = list(node.inputs)
        if node.op is REPEAT and node.body is not None:
            inner = _uses(node.body)
            rows = operands_of(node, node.inputs).params
            for leaf, value in (pair for row in rows
                                for pair in zip(node.body.params, row, strict=True)):
                found.setdefault(value, []).extend(inner.get(leaf, ()))
            own = own[:len(own) - sum(map(len, rows))]
        for operand, value in enumerate(own):
            found.setdefault(value, []).append(Use(node, operand))
    for value in graph.outputs:
        found.setdefault(value, []).append(Use(None, 0))
    return found


def _reason(param: Value, uses: Sequence[Use]) -> str:
    """Why a weight stays as it is, or an empty string."""
    what = f"{param.name} is {param.type}"
    other = next((use for use in uses if not use.is_weight), None)
    if other is not None:
        return f"{what} and {other} reads it too" if other.node else f"{what} and a result too"
    if param.dtype not in NARROW:
        return f"{what}: tiles have 16 bits"
    if any(not isinstance(size, int) or size % NZ_WIDTH for size in param.shape):
        return f"{what}, wanted sizes that are multiples of {NZ_WIDTH}"
    return ""


def _shared(graph: Graph, weights: Sequence[Value],
            reasons: Mapping[Value, str]) -> dict[Value, str]:
    """`reasons`, and one for each weight that stands in a repeat for another that has one: the
    turns run one graph."""
    found = dict(reasons)
    columns = [column for node in graph.nodes if node.op is REPEAT
               for column in zip(*operands_of(node, node.inputs).params, strict=True)]
    changed = True
    while changed:
        changed = False
        for column in columns:
            kept = next((v for v in column if v in found or v not in weights), None)
            for value in column if kept is not None else ():
                if value in weights and value not in found:
                    assert kept is not None
                    found[value] = (f"{value.name} is read in a turn of a repeat, another turn of "
                                    f"which reads {kept.name}, which stays as it is")
                    changed = True
    return found


def _linears(uses: Mapping[Value, Sequence[Use]], params: Sequence[Value]) -> dict[Node, Value]:
    """The Linears that read some params, each with the first of them."""
    found: dict[Node, Value] = {}
    for param in params:
        for use in uses[param]:
            if use.is_weight and use.node is not None:
                found.setdefault(use.node, param)
    return found


def _tiled(graph: Graph, leaves: Collection[Value]) -> Graph:
    """`graph` with these leaves in tiles, in the bodies of its nodes too."""
    new: dict[Value, Value] = {leaf: _in_tiles(leaf) for leaf in leaves}
    for node in graph.nodes:
        inner = {leaf for leaf, value in _given(node) if value in leaves}
        if inner and node.body is not None:
            changed = replace(node, body=_tiled(node.body, inner))
            new.update(zip(node.outputs, changed.outputs, strict=True))
    inputs, params = (tuple(new.get(v, v) for v in own) for own in (graph.inputs, graph.params))
    return substitute(graph, new, inputs=inputs, params=params)


def _given(node: Node) -> Iterator[tuple[Value, Value]]:
    """The leaves of a node's body and what they are outside: of a repeat its params, in the first
    turn."""
    if node.op is REPEAT and node.body is not None:
        first = operands_of(node, node.inputs).params[0]
        yield from zip(node.body.params, first, strict=True)
    elif node.body is not None:
        yield from zip(node.body.leaves, node.inputs, strict=True)


def _in_tiles(value: Value) -> Value:
    return replace(value, type=replace(value.type, format="nz"))


__all__ = ["FORMATS", "WeightFormat"]
