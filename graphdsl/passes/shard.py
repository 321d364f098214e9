"""Tensor parallelism: the graph of one rank of several that run a model together.

Two linears with only work on columns or heads between them are split in one: the first makes some
columns, the second reads them and makes a part of every sum, which all_reduce adds up. Source:
Shoeybi et al., Megatron-LM, arXiv 1909.08053.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from graphdsl.errors import GraphError
from graphdsl.ir import Graph, Node, Size, TensorType, Value
from graphdsl.op import Op, constant_of
from graphdsl.ops.collectives import all_gather, all_reduce
from graphdsl.ops.linear import embedding
from graphdsl.ops.math import add, equal, maximum, minimum, sub, where
from graphdsl.ops.shape import concat, expand, reshape, slice, split, transpose
from graphdsl.passes.base import Fired, Missed, Result, Target
from graphdsl.passes.linear import is_made_of_params
from graphdsl.passes.roll import is_layer, opened
from graphdsl.passes.shard_axes import LINEARS, Cut, Misfit, NotCut, Region, Segment

RULE = "Shard"


@dataclass(frozen=True)
class Shard:
    """Rank `rank` of `ranks` has its part of the weights and of the heads of the caches. Norms and
    what no pair of linears encloses every rank does by itself."""

    name: ClassVar[str] = "shard"
    rank: int = 0
    ranks: int = 1

    def run(self, graph: Graph, target: Target) -> Result:
        if not 0 <= self.rank < self.ranks:
            raise GraphError(f"--pass shard:rank={self.rank},ranks={self.ranks}: no such rank",
                             hint="ranks are 0 to ranks - 1")
        if self.ranks == 1:
            return Result(graph)
        found = _Sharder(self.rank, self.ranks, target.splits_vocabulary)
        made = found.sharded(graph, outermost=True)
        if not found.fired:
            why = found.missed[-1] if found.missed else None
            raise GraphError(f"{graph.name} has nothing to split over {self.ranks} ranks"
                             + (f": {why.reason}" if why else ""), why.loc if why else None,
                             "two linears by weights with heads or pointwise work between them")
        return Result(made, tuple(found.fired), tuple(found.missed))


@dataclass
class _Split:
    """What is split in one graph."""

    cuts: dict[Value, Cut] = field(default_factory=dict)
    operands: dict[Node, dict[int, Cut]] = field(default_factory=dict)
    rows: set[Node] = field(default_factory=set)
    heads: set[Node] = field(default_factory=set)
    tables: set[Node] = field(default_factory=set)
    layers: dict[Node, Graph] = field(default_factory=dict)


@dataclass
class _Sharder:
    rank: int
    ranks: int
    splits_vocabulary: bool
    fired: list[Fired] = field(default_factory=list)
    missed: list[Missed] = field(default_factory=list)

    def sharded(self, graph: Graph, outermost: bool = False) -> Graph:
        """The graph of this rank. Raises GraphError, at the user's line, for sizes that the ranks
        do not divide."""
        found = _Split()
        for node in filter(is_layer, graph.nodes):
            assert node.body is not None
            found.layers[node] = self.sharded(_flat(node.body))
        reasons: dict[Node, NotCut] = {}
        linears = [n for n in graph.nodes if _is_linear(n)]
        for node in linears:
            try:
                self.pair(graph, found, node)
            except NotCut as error:
                reasons[node] = error
        for node in graph.nodes if outermost and self.splits_vocabulary else ():
            if self.vocabulary(graph, found, node):
                reasons.pop(node, None)
        for node in linears:
            why = reasons.get(node)
            if why and node not in found.operands:
                self.missed.append(Missed(RULE, node.loc, node.scope,
                                          f"every rank has the whole weight: {why.reason}", why.at))
        return _Rewriter(graph, found, self.rank, self.ranks).graph()

    def pair(self, graph: Graph, found: _Split, node: Node) -> None:
        """Splits what lies between `node` and the linears before it. Raises NotCut where it cannot
        be, GraphError where the sizes are to blame."""
        x = node.inputs[0]
        size = x.shape[-1]
        assert isinstance(size, int)
        region = Region(graph, self.ranks)
        cut = Cut(len(x.shape) - 1, (Segment(size, self.ranks),))
        region.take(node, 0, cut)
        region.take(node, 1, cut.at(1))
        region.grow()
        _check_apart(region, found)
        if region.misfits:
            self.refuse(region.misfits[0], node)
        found.cuts |= region.cuts
        found.operands |= region.operands
        found.rows.add(node)
        lines = tuple(dict.fromkeys(n.loc for n in region.operands if n.op in LINEARS))
        self.fired.append(Fired(RULE, node.loc, node.scope, lines))

    def refuse(self, misfit: Misfit, node: Node) -> None:
        raise GraphError(misfit.message, misfit.loc or node.loc,
                         misfit.hint or "give a number of ranks that divides it")

    def vocabulary(self, graph: Graph, found: _Split, node: Node) -> bool:
        """Splits the rows of a table that ids look up, and of a head whose result is a result.
        Whether the node is one of them."""
        is_table = (node.op is embedding and node.inputs[0] in graph.inputs
                    and is_made_of_params(node.inputs[1]))
        is_head = (_is_linear(node) and node not in found.rows and node not in found.operands
                   and _ends_in_results(graph, node.outputs[0]))
        if not is_table and not is_head:
            return False
        rows = node.inputs[1].shape[0]
        assert isinstance(rows, int)
        if rows % self.ranks:
            self.missed.append(Missed(RULE, node.loc, node.scope, "every rank has the whole "
                                      f"weight: {self.ranks} ranks do not divide {rows} rows"))
            return True
        (found.tables if is_table else found.heads).add(node)
        self.fired.append(Fired(RULE, node.loc, node.scope))
        return True


def _flat(body: Graph) -> Graph:
    """The body of a Layer with the Layers in it opened, unless one of those has caches: pairs of
    linears may lie in different ones."""
    inner = [n.body for n in body.nodes if is_layer(n) and n.body is not None]
    return body if any(b.state for b in inner) else opened(body)


def _is_linear(node: Node) -> bool:
    return (node.op in LINEARS and is_made_of_params(node.inputs[1])
            and isinstance(node.inputs[1].shape[0], int))


def _check_apart(region: Region, found: _Split) -> None:
    """Raises NotCut where two pairs share a linear or a value."""
    for other in region.operands:
        if other in found.operands:
            raise NotCut(f"{other.name} at {other.loc} is split in another way", other.loc)


def _ends_in_results(graph: Graph, value: Value) -> bool:
    """Whether a value becomes results alone, number by number."""
    users = graph.users.get(value, [])
    for user in users:
        if user is None:
            if value not in graph.results:
                return False
            continue
        others = [v for v in user.inputs if v is not value and len(v.shape) > 0]
        if user.op.kind != "pointwise" or others or not _ends_in_results(graph, user.outputs[0]):
            return False
    return bool(users)


@dataclass
class _Rewriter:
    """The nodes of one graph as a rank has them."""

    old: Graph
    found: _Split
    rank: int
    ranks: int
    env: dict[Value, Value] = field(default_factory=dict)

    def graph(self) -> Graph:
        state = tuple(map(self.own_state, self.old.state))
        self.env.update(zip(self.old.state, state, strict=True))
        for node in self.old.nodes:
            outputs = self.made(node)
            self.env.update(zip(node.outputs, outputs, strict=True))
        outputs = tuple(self.env.get(v, v) for v in self.old.outputs)
        return replace(self.old, state=state, outputs=outputs)

    def own_state(self, value: Value) -> Value:
        """A cache with the heads of this rank."""
        kind = value.type
        if value in self.found.cuts:
            kind = self.own_type(value)
        for node, body in self.found.layers.items():
            first = len(body.inputs)
            for place, inner in enumerate(body.state):
                if node.inputs[first + place] is value:
                    kind = inner.type
        return value if kind == value.type else replace(value, type=kind)

    def own_type(self, value: Value) -> TensorType:
        return replace(value.type, shape=self.own_shape(value))

    def own_shape(self, value: Value) -> tuple[Size, ...]:
        cut = self.found.cuts.get(value)
        if cut is None:
            return value.shape
        return (*value.shape[:cut.axis], cut.own, *value.shape[cut.axis + 1:])

    def made(self, node: Node) -> tuple[Value, ...]:
        """What this rank has in place of a node's outputs."""
        if node in self.found.layers:
            body = self.found.layers[node]
            inputs = tuple(self.env.get(v, v) for v in node.inputs)
            types = tuple(v.type for v in body.outputs)
            return replace(node, inputs=inputs, body=body, out_types=types).outputs
        at = _At(node)
        if node in self.found.rows:
            return (self.row_parallel(node, at),)
        if node in self.found.heads:
            whole = [Cut(0, (Segment(_whole(v), self.ranks),)) for v in node.inputs[1:]]
            parts = [self.part(v, c, at) for v, c in zip(node.inputs[1:], whole, strict=True)]
            made = at.make(node.op, self.env.get(node.inputs[0], node.inputs[0]), *parts,
                           attrs=node.attr)
            return (at.make(all_gather, made, attrs=self.group | {"axis": -1}),)
        if node in self.found.tables:
            return (self.looked_up(node, at),)
        operands = self.operands(node, at)
        if not any(v in self.found.cuts for v in node.outputs):
            same = all(a is b for a, b in zip(operands, node.inputs, strict=True))
            return node.outputs if same else replace(node, inputs=operands).outputs
        return node.op.apply(operands, self.own_attrs(node), node.loc, node.scope,
                             (*node.origin, RULE)).outputs

    @property
    def group(self) -> dict[str, Any]:
        return {"rank": self.rank, "ranks": self.ranks}

    def operands(self, node: Node, at: _At) -> tuple[Value, ...]:
        """What a node reads on this rank: of params its part."""
        cuts = self.found.operands.get(node, {})
        return tuple(self.part(v, cuts[i], at) if i in cuts and is_made_of_params(v)
                     else self.env.get(v, v) for i, v in enumerate(node.inputs))

    def own_attrs(self, node: Node) -> dict[str, Any]:
        """The attributes of a node of which this rank makes a part."""
        attrs = dict(node.attr)
        if node.op in (reshape, expand):
            attrs["shape"] = self.own_shape(node.outputs[0])
        if node.op is split:
            axis = attrs["axis"]
            attrs["sizes"] = tuple(self.own_shape(v)[axis] for v in node.outputs)
        return attrs

    def row_parallel(self, node: Node, at: _At) -> Value:
        """The sum over all ranks; a bias is added to it, once."""
        x, w, *bias = self.operands(node, at)
        total = at.make(all_reduce, at.make(node.op, x, w), attrs=self.group)
        return at.make(add, total, *bias) if bias else total

    def looked_up(self, node: Node, at: _At) -> Value:
        """Rows of the table from the rank that has them; the others add zeros."""
        ids, table = (self.env.get(v, v) for v in node.inputs)
        cut = Cut(0, (Segment(_whole(table), self.ranks),))
        ((start, size),) = cut.pieces(self.rank, self.ranks)
        local = at.make(sub, ids, at.number(start, "i32"))
        inside = at.make(minimum, at.make(maximum, local, at.number(0, "i32")),
                         at.number(size - 1, "i32"))
        rows = at.make(embedding, inside, self.part(table, cut, at))
        own = at.make(reshape, at.make(equal, local, inside), attrs={"shape": (*ids.shape, 1)})
        kept = at.make(where, own, rows, at.number(0.0, rows.dtype))
        return at.make(all_reduce, kept, attrs=self.group)

    def part(self, value: Value, cut: Cut, at: _At) -> Value:
        """The part of a weight that this rank has: slices of it, before it is transposed."""
        if value.node is not None and value.node.op is transpose:
            order = value.node.attr["order"]
            inner = self.part(value.node.inputs[0], cut.at(order[cut.axis]), at)
            return at.make(transpose, inner, attrs={"order": order})
        pieces = [at.make(slice, value, attrs={"axis": cut.axis, "start": start, "size": size})
                  for start, size in cut.pieces(self.rank, self.ranks)]
        if cut.own == cut.size:
            return value
        return at.make(concat, *pieces, attrs={"axis": cut.axis}) if pieces[1:] else pieces[0]


@dataclass(frozen=True)
class _At:
    """Makes nodes in the place of another: at its line, in its scope."""

    node: Node

    def make(self, op: Op, *operands: Value, attrs: Mapping[str, Any] | None = None) -> Value:
        given = {**op.parameters.defaults, **(attrs or {})}
        made = op.apply(operands, given, self.node.loc, self.node.scope,
                        (*self.node.origin, RULE))
        return made.outputs[0]

    def number(self, value: float, dtype: str) -> Value:
        return constant_of(value, dtype, self.node.loc)


def _whole(weight: Value) -> int:
    size = weight.shape[0]
    assert isinstance(size, int)
    return size
