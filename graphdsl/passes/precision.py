"""Which values stay f32 in a graph of 16-bit floats, and what a target cannot hold at all.

Kernels that add up (matmul, attention, reduce_sum) do so in f32 by their definition; what this
pass adds are casts around them, so that the graph itself says what is f32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from graphdsl.errors import GraphError, Loc
from graphdsl.ir import Graph, Node, Value
from graphdsl.op import constant, constant_of
from graphdsl.ops.linear import matmul, matmul_nt
from graphdsl.ops.math import cast, cos, reduce_sum, sin
from graphdsl.passes.base import Fired, Missed, Result, Target, in_bodies
from graphdsl.passes.repeat import REPEAT, operands_of
from graphdsl.passes.rewrite import substitute

RULE = "KeepF32"
NARROW = {"bf16": 256, "f16": 2048}
"""16-bit floats, and the number up to which they hold every whole one."""


def live_kernels(graph: Graph, takes: frozenset[str]) -> Iterator[tuple[Node, Loc | None]]:
    """The kernels that run at every step, in the bodies of Layers and Operations too, each with
    the user's line: those of an Operation have its caller's. Work on params and numbers alone is
    done when weights are loaded, and is left out."""
    yield from _live(graph, takes, set(graph.params), None)


def _live(graph: Graph, takes: frozenset[str], fixed: set[Value],
          caller: Loc | None) -> Iterator[tuple[Node, Loc | None]]:
    for node in graph.nodes:
        if all(v in fixed for v in node.inputs):
            fixed.update(node.outputs)
            continue
        loc = caller or node.loc
        if node.body is None or node.name in takes:
            yield node, loc
            continue
        inner = _fixed_leaves(node, node.body, fixed)
        is_layer = bool(node.body.params or node.body.state)
        yield from _live(node.body, takes, inner, None if is_layer else loc)


def _fixed_leaves(node: Node, body: Graph, fixed: set[Value]) -> set[Value]:
    """The leaves of a body that stand for values of `fixed`, in every turn of a repeat."""
    if node.op is not REPEAT:
        return {leaf for leaf, v in zip(body.leaves, node.inputs, strict=True) if v in fixed}
    operands = operands_of(node, node.inputs)
    rows = zip(operands.params, operands.state, strict=True)
    turns = [(*operands.invariant, *state, *params) for params, state in rows]
    leaves = body.leaves[len(operands.carried):]
    return {leaf for leaf, column in zip(leaves, zip(*turns, strict=True), strict=True)
            if fixed.issuperset(column)}


@dataclass(frozen=True)
class CheckDtypes:
    """Refuses dtypes that the target has not, at the line where one first appears."""

    name: ClassVar[str] = "dtypes"

    def run(self, graph: Graph, target: Target) -> Result:
        known = {*target.dtypes, "i32", "bool"}
        for node, loc in live_kernels(graph, target.takes):
            for value in (*node.inputs, *node.outputs):
                if value.dtype not in known:
                    what = value.name or (value.node.name if value.node else "an operand")
                    raise GraphError(f"{what} is {value.type}: the {target.name} backend has no "
                                     f"{value.dtype}", loc,
                                     f"dtypes: {', '.join(sorted(target.dtypes))}")
        return Result(graph)


@dataclass
class _Region:
    """The 16-bit values of one graph that are computed in f32 instead: what a row sum adds up, as
    far as nothing else reads it, the row's number that it makes, and what that is applied to."""

    graph: Graph
    kept: dict[Value, None] = field(default_factory=dict)
    fired: list[Fired] = field(default_factory=list)
    wide: dict[Value, Value] = field(default_factory=dict)
    casts: dict[Value, Value] = field(default_factory=dict)

    def changed(self) -> Graph:
        """The graph with these values in f32, and casts where they are read by others."""
        for node in self.graph.nodes:
            if _is_narrow_sum(node) or _is_rounded_mean(node):
                self.grow(node)
        if not self.fired:
            return self.graph
        new: dict[Value, Value] = {}
        for node in self.graph.nodes:
            out = node.outputs[0]
            if out in self.kept and node.op is cast:
                self.wide[out] = node.inputs[0]
            elif out in self.kept:
                self.wide[out] = self.widened(node)
                new[out] = _cast(self.wide[out], out.dtype, node)
            elif node.op is cast and out.dtype == "f32" and node.inputs[0] in self.kept:
                new[out] = self.wide[node.inputs[0]]
        return substitute(self.graph, new)

    def grow(self, seed: Node) -> None:
        """From one sum forward to what its number is used for, and backward to what only that
        needs."""
        size = len(self.kept)
        self.kept[seed.outputs[0]] = None
        todo = [seed.outputs[0]]
        while todo:
            value = todo.pop()
            found = [*self.forward(value), *self.backward(value)]
            self.kept.update(dict.fromkeys(found))
            todo += found
            if not todo:  # what one reader kept narrow may be free by now
                todo = [v for k in self.kept for v in self.backward(k)]
                self.kept.update(dict.fromkeys(todo))
        if len(self.kept) > size + 1 or _is_narrow_sum(seed):
            self.fired.append(Fired(RULE, seed.loc, seed.scope))
        else:
            del self.kept[seed.outputs[0]]

    def forward(self, value: Value) -> list[Value]:
        """The narrow results of pointwise kernels that read a row's number."""
        if not is_row_scalar(value):
            return []
        users = (u for u in self.graph.users.get(value, []) if u and _is_plain(u))
        return [u.outputs[0] for u in users if u.outputs[0] not in self.kept]

    def backward(self, value: Value) -> list[Value]:
        """The narrow operands, of the same rows, that nothing reads but what is in f32."""
        assert value.node is not None
        return [v for v in _narrow_sources(value.node)
                if v not in self.kept and v.node and _is_plain(v.node)
                and v.shape[:-1] == value.shape[:-1]
                and all(u and self.is_wide(u) for u in self.graph.users[v])]

    def is_wide(self, node: Node) -> bool:
        return node.outputs[0] in self.kept or (node.op is cast and node.outputs[0].dtype == "f32")

    def widened(self, node: Node) -> Value:
        """The kernel on operands in f32."""
        operands = tuple(self.operand(v, node) for v in node.inputs)
        made = node.op.apply(operands, node.attr, node.loc, node.scope, (*node.origin, RULE))
        return made.outputs[0]

    def operand(self, value: Value, reader: Node) -> Value:
        if value in self.wide:
            return self.wide[value]
        if not is_narrow(value):
            return value
        if value not in self.casts:
            made = value.node
            self.casts[value] = (constant_of(made.attr["value"], "f32", made.loc)
                                 if made and made.op is constant
                                 else _cast(value, "f32", made or reader))
        return self.casts[value]


def _cast(value: Value, dtype: str, like: Node) -> Value:
    made = cast.apply((value,), {"dtype": dtype}, like.loc, like.scope, (*like.origin, RULE))
    return made.outputs[0]


def is_narrow(value: Value) -> bool:
    """Whether a value is a 16-bit float."""
    return value.dtype in NARROW


def is_row_scalar(value: Value) -> bool:
    """Whether a value is one number a row: a statistic."""
    return value.shape[-1:] == (1,)


def _is_narrow_sum(node: Node) -> bool:
    return node.op is reduce_sum and is_narrow(node.outputs[0])


def _is_rounded_mean(node: Node) -> bool:
    """The last kernel of `mean`, which adds up in f32 and rounds to the dtype of its operand."""
    return (node.op is cast and is_narrow(node.outputs[0]) and _is_of_mean(node)
            and node.inputs[0].dtype == "f32")


def _is_of_mean(node: Node) -> bool:
    return node.scope.endswith("mean()")


def _is_plain(node: Node) -> bool:
    """A pointwise kernel with a narrow result; a cast says what the user wants."""
    return (node.op.kind == "pointwise" and node.op not in (cast, constant)
            and is_narrow(node.outputs[0]))


def _narrow_sources(node: Node) -> Iterator[Value]:
    """The narrow operands of a kernel, seen through the kernels of `mean`."""
    for value in node.inputs:
        if is_narrow(value):
            yield value
        elif value.node is not None and value.dtype == "f32" and _is_of_mean(value.node):
            yield from _narrow_sources(value.node)


def rounded_angles(graph: Graph) -> Iterator[Missed]:
    """Sines of what whole numbers in a 16-bit float make: positions are not exact there."""
    for node in graph.nodes:
        if node.op not in (cos, sin):
            continue
        seen: dict[Node, None] = {}
        todo = [node.inputs[0]]
        while todo:
            made = todo.pop().node
            if made is not None and made not in seen and _keeps_angles(made):
                seen[made] = None
                todo += made.inputs
        first = next((n for n in reversed(seen) if is_narrow(n.outputs[0])), None)
        if first and any(v.dtype == "i32" for n in seen for v in n.inputs):
            dtype = first.outputs[0].dtype
            yield Missed(RULE, node.loc, node.scope,
                         f"the angles come from {dtype}, where positions above {NARROW[dtype]} "
                         'are not exact: cast them to "f32"', first.loc)


def _keeps_angles(node: Node) -> bool:
    return node.op.kind in ("pointwise", "view") or node.op in (matmul, matmul_nt)


@dataclass(frozen=True)
class KeepF32:
    """Sums of 16-bit rows, and what a row's number is made of and applied to, are computed in f32
    and rounded once. Rope angles that a graph makes of rounded positions are reported."""

    name: ClassVar[str] = "precision"

    def run(self, graph: Graph, target: Target) -> Result:
        fired: list[Fired] = []
        missed: list[Missed] = []

        def changed(part: Graph) -> Graph:
            region = _Region(part)
            new = region.changed()
            fired.extend(region.fired)
            missed.extend(rounded_angles(part))
            return new

        new = changed(in_bodies(graph, changed))
        return Result(new, tuple(fired), tuple(dict.fromkeys(missed)))
