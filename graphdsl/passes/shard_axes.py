"""Which values are cut, along which axis, where a linear reads its rows in parts.

A region grows backward from what such a linear reads: an op whose result is to be cut says which of
its operands have to be cut for that, up to linears that then make only their part. Nothing goes by
name; what an op does to an axis is all that counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from graphdsl.errors import Loc
from graphdsl.ir import Graph, Node, Size, Value
from graphdsl.op import Op
from graphdsl.ops.attention import attention
from graphdsl.ops.kv import kv_append
from graphdsl.ops.linear import linear, matmul, matmul_nt
from graphdsl.ops.math import broadcast_shape
from graphdsl.ops.shape import concat, expand, reshape, slice, split, transpose
from graphdsl.passes.linear import is_made_of_params
from graphdsl.passes.roll import is_layer

LINEARS: tuple[Op, ...] = (linear, matmul_nt)
HEADS = 2
"""The axis of heads in what attention and caches take: [batch, tokens, heads, head_dim]."""


@dataclass(frozen=True)
class Segment:
    """A run of an axis that is cut into `parts` equal parts. Where there are fewer parts than
    ranks, several ranks in a row have the same one."""

    size: int
    parts: int

    def share(self, rank: int, ranks: int) -> tuple[int, int]:
        """Where the part of a rank starts, and its size."""
        each = self.size // self.parts
        return rank * self.parts // ranks * each, each


@dataclass(frozen=True)
class Cut:
    """How an axis, counted from the front, is cut: segment by segment."""

    axis: int
    segments: tuple[Segment, ...]

    @property
    def size(self) -> int:
        return sum(s.size for s in self.segments)

    @property
    def own(self) -> int:
        """The size that a rank has of the axis."""
        return sum(s.size // s.parts for s in self.segments)

    def at(self, axis: int) -> Cut:
        """The same of another axis."""
        return Cut(axis, self.segments)

    def pieces(self, rank: int, ranks: int) -> list[tuple[int, int]]:
        """Where the pieces of a rank start, and their sizes."""
        found, start = [], 0
        for segment in self.segments:
            begin, size = segment.share(rank, ranks)
            found.append((start + begin, size))
            start += segment.size
        return found


class NotCut(Exception):
    """A value cannot be cut as it would have to be, and why."""

    def __init__(self, reason: str, at: Loc | None = None) -> None:
        super().__init__(reason)
        self.reason, self.at = reason, at


@dataclass(frozen=True)
class Misfit:
    """A size that the number of ranks does not divide."""

    message: str
    loc: Loc | None
    hint: str = ""


@dataclass
class Region:
    """The values of one graph that are cut, and for each node which of its operands are.

    `inner`: the graph is the body of an Operation, whose leaves may be cut.
    """

    graph: Graph
    ranks: int
    inner: bool = False
    cuts: dict[Value, Cut] = field(default_factory=dict)
    operands: dict[Node, dict[int, Cut]] = field(default_factory=dict)
    misfits: list[Misfit] = field(default_factory=list)
    _todo: list[Value] = field(default_factory=list)

    def grow(self) -> None:
        """Follows what is cut backward to where it begins. Raises NotCut where that fails."""
        while self._todo:
            value = self._todo.pop()
            if value.node is not None:
                self._visit(value.node, value)
        self._check_whole()

    def take(self, node: Node, index: int, cut: Cut) -> None:
        """Operand `index` of `node` is cut."""
        known = self.operands.setdefault(node, {}).setdefault(index, cut)
        if known != cut:
            raise NotCut(f"{node.name} needs an operand in two ways", node.loc)
        value = node.inputs[index]
        if not is_made_of_params(value):
            self.make(value, cut, node.loc)

    def make(self, value: Value, cut: Cut, loc: Loc | None) -> None:
        """`value` is cut."""
        if value.shape[cut.axis] != cut.size:
            raise NotCut(f"{value.type} has no axis of {cut.size} there", loc)
        known = self.cuts.get(value)
        if known not in (None, cut):
            raise NotCut("it is needed in two ways", value.loc or loc)
        if known is None:
            if value.node is None and value.kind != "state" and not self.inner:
                raise NotCut(f"{value.name} is an input, which every rank has whole", loc)
            self.cuts[value] = cut
            self._todo.append(value)
            self._check_size(value, cut, loc)

    def _check_size(self, value: Value, cut: Cut, loc: Loc | None) -> None:
        for segment in cut.segments:
            if segment.size % segment.parts:
                where = value.loc or loc
                self.misfits.append(Misfit(f"an axis of {segment.size} cannot be split over "
                                           f"{segment.parts} ranks", where))

    def _visit(self, node: Node, value: Value) -> None:
        cut = self.cuts[value]
        rule = RULES.get(node.op)
        if rule is not None:
            rule(self, node, value, cut)
        elif node.op.kind == "pointwise":
            _pointwise(self, node, value, cut)
        elif node.op.kind == "reduce":
            _reduced(self, node, value, cut)
        elif node.body is not None and not is_layer(node):
            self._visit_body(node, node.body, value, cut)
        else:
            raise NotCut(f"{node.name} makes its result whole", node.loc)

    def _visit_body(self, node: Node, body: Graph, value: Value, cut: Cut) -> None:
        """What an Operation does to an axis is what its body does."""
        inside = Region(body, self.ranks, inner=True)
        inside.make(body.outputs[value.index], cut, node.loc)
        inside.grow()
        self.misfits += [Misfit(m.message, node.loc, m.hint) for m in inside.misfits]
        for index, leaf in enumerate(body.leaves):
            if leaf in inside.cuts:
                self.take(node, index, inside.cuts[leaf])

    def _check_whole(self) -> None:
        """Raises NotCut where something reads a cut value as if it were whole."""
        results = set(self.graph.results)
        for value in self.cuts:
            if value in results and not self.inner:
                raise NotCut("it is a result", value.loc)
            for user in self.graph.users.get(value, []):
                if user is None:
                    continue
                taken = self.operands.get(user, {})
                if any(v is value and i not in taken for i, v in enumerate(user.inputs)):
                    raise NotCut(f"{user.name} at {user.loc} reads it whole", value.loc)
        for node in self.operands:
            made = [v for v in node.outputs if v in self.graph.users]
            if any(v in self.cuts for v in made) and not all(v in self.cuts for v in made):
                raise NotCut(f"only some results of {node.name} can be cut", node.loc)
        if not self.inner:
            for old, new in zip(self.graph.state, self.graph.new_state, strict=True):
                if self.cuts.get(old) != self.cuts.get(new):
                    raise NotCut(f"the cache {old.name} is not written as it is read", new.loc)


def _pointwise(region: Region, node: Node, value: Value, cut: Cut) -> None:
    rank = len(broadcast_shape([value.type]))
    for index, operand in enumerate(node.inputs):
        axis = cut.axis - (rank - len(operand.shape))
        if axis >= 0 and operand.shape[axis] != 1:
            region.take(node, index, cut.at(axis))


def _reduced(region: Region, node: Node, value: Value, cut: Cut) -> None:
    if cut.axis == len(value.shape) - 1:
        raise NotCut(f"{node.name} reads whole rows", node.loc)
    region.take(node, 0, cut)


def _linear(region: Region, node: Node, value: Value, cut: Cut) -> None:
    """A column-parallel linear: some rows of the weight make some columns of the result."""
    if cut.axis != len(value.shape) - 1:
        raise NotCut("its rows would be cut, not its columns", node.loc)
    for index in range(1, len(node.inputs)):
        if not region.inner and not is_made_of_params(node.inputs[index]):
            raise NotCut(f"a weight of {node.name} is not a Param", node.loc)
        region.take(node, index, cut.at(0))


def _matmul(region: Region, node: Node, value: Value, cut: Cut) -> None:
    last = len(value.shape) - 1
    if cut.axis != last:
        region.take(node, 0, cut)
    if cut.axis != last - 1:
        region.take(node, 1, cut)


def _attention(region: Region, node: Node, value: Value, cut: Cut) -> None:
    if cut.axis != HEADS or len(cut.segments) != 1:
        raise NotCut("attention can be cut by heads alone", node.loc)
    at = {name: i for i, name in enumerate(node.op.present(len(node.inputs), node.attr))}
    ranks = region.ranks
    heads, kv_heads = (node.inputs[at[name]].shape[HEADS] for name in "qk")
    assert isinstance(heads, int)
    assert isinstance(kv_heads, int)
    if heads % ranks:
        region.misfits.insert(0, Misfit(f"{heads} heads of attention cannot be split over {ranks} "
                                        "ranks", node.loc,
                                        f"give a number of ranks that divides {heads}"))
    if kv_heads % ranks and ranks % kv_heads:
        region.misfits.append(Misfit(f"{kv_heads} kv heads can be neither split over {ranks} ranks "
                                     "nor shared by them", node.loc,
                                     f"give a number of ranks that divides {kv_heads}, or that "
                                     f"{kv_heads} divides"))
    shared = Cut(HEADS, (Segment(kv_heads, min(kv_heads, ranks)),))
    region.take(node, at["q"], cut)
    region.take(node, at["k"], shared)
    region.take(node, at["v"], shared)
    if "mask" in at:
        mask = node.inputs[at["mask"]]
        axis = len(mask.shape) - 3
        if axis >= 0 and mask.shape[axis] != 1:
            region.take(node, at["mask"], cut.at(axis))


def _append(region: Region, node: Node, value: Value, cut: Cut) -> None:
    if cut.axis != HEADS:
        raise NotCut("a cache can be cut by heads alone", node.loc)
    region.take(node, 0, cut)
    region.take(node, 1, cut)


def _reshape(region: Region, node: Node, value: Value, cut: Cut) -> None:
    old = node.inputs[0].shape
    axis = same_axis(value.shape, old, cut.axis)
    size = old[axis] if axis is not None else None
    if axis is None or not isinstance(size, int):
        raise NotCut("a reshape mixes the axis with others", node.loc)
    segments = []
    for segment in cut.segments:
        scaled, rest = divmod(segment.size * size, cut.size)
        if rest:
            raise NotCut("a reshape takes heads apart", node.loc)
        segments.append(Segment(scaled, segment.parts))
    region.take(node, 0, Cut(axis, tuple(segments)))


def _transpose(region: Region, node: Node, value: Value, cut: Cut) -> None:
    region.take(node, 0, cut.at(node.attr["order"][cut.axis]))


def _slice(region: Region, node: Node, value: Value, cut: Cut) -> None:
    if node.attr["axis"] % len(value.shape) == cut.axis:
        raise NotCut("a slice takes a part of the axis", node.loc)
    region.take(node, 0, cut)


def _expand(region: Region, node: Node, value: Value, cut: Cut) -> None:
    if node.inputs[0].shape[cut.axis] != 1:
        region.take(node, 0, cut)


def _split(region: Region, node: Node, value: Value, cut: Cut) -> None:
    """Pieces along the cut axis come one after the other; once every piece is known the whole
    is."""
    used = [v for v in node.outputs if v in region.graph.users]
    if node.attr["axis"] % len(value.shape) != cut.axis:
        for piece in used:
            region.make(piece, cut, node.loc)
        region.take(node, 0, cut)
        return
    if len(used) < len(node.outputs):
        raise NotCut("a piece of a split is not read", node.loc)
    known = [region.cuts.get(piece) for piece in node.outputs]
    if all(c is not None and c.axis == cut.axis for c in known):
        segments = tuple(s for c in known if c for s in c.segments)
        region.take(node, 0, Cut(cut.axis, segments))


def _concat(region: Region, node: Node, value: Value, cut: Cut) -> None:
    if node.attr["axis"] % len(value.shape) == cut.axis:
        raise NotCut("a concat makes the axis of several", node.loc)
    for index in range(len(node.inputs)):
        region.take(node, index, cut)


RULES: dict[Op, Callable[[Region, Node, Value, Cut], None]] = {
    linear: _linear, matmul_nt: _linear, matmul: _matmul, attention: _attention,
    kv_append: _append, reshape: _reshape, transpose: _transpose, slice: _slice, expand: _expand,
    split: _split, concat: _concat,
}
"""What ops that are neither pointwise nor Operations do to an axis."""


def same_axis(new: Sequence[Size], old: Sequence[Size], axis: int) -> int | None:
    """The axis of `old` that is cut where `axis` of `new`, the same elements in row order, is: both
    are the outermost of a run of axes that has the same elements in both. None where it is not."""
    i = j = 0
    while i < len(new) and j < len(old):
        first = i, j
        i, j = i + 1, j + 1
        while _count(new[first[0]:i]) != _count(old[first[1]:j]):
            grows_new = _is_less(_count(new[first[0]:i]), _count(old[first[1]:j]))
            i, j = (i + 1, j) if grows_new else (i, j + 1)
            if i > len(new) or j > len(old):
                return None
        if first[0] <= axis < i:
            outer = next((n for n in range(first[0], i) if new[n] != 1), axis)
            there = next((n for n in range(first[1], j) if old[n] != 1), first[1])
            return there if outer == axis else None
    return None


Elements = tuple[int, Counter[Size]]


def _count(sizes: Sequence[Size]) -> Elements:
    known = [s for s in sizes if isinstance(s, int)]
    return math.prod(known), Counter(s for s in sizes if not isinstance(s, int))


def _is_less(a: Elements, b: Elements) -> bool:
    """Whether `a` has to grow to become `b`."""
    if a[1] != b[1]:
        return a[1] <= b[1]
    return a[0] < b[0]
