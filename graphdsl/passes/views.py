"""Rules for views: they bring what stands between the parts of rope and attention to one spelling.

A LocalRule looks at one node and at what made its operands; those stay for their other users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from graphdsl.ir import Node, Size, Value, scaled
from graphdsl.op import Op, constant
from graphdsl.ops.math import add, cast, cos, mul, neg, sin, sub
from graphdsl.ops.shape import (
    concat,
    expand,
    repeat_interleave,
    reshape,
    slice,
    split,
    transpose,
)
from graphdsl.passes.identities import SIMPLER
from graphdsl.passes.match import NoMatch
from graphdsl.passes.overlay import Overlay
from graphdsl.passes.rules import Candidate, Rule


@dataclass(frozen=True)
class Site:
    """A node of a graph under change, and what its operands are made by."""

    overlay: Overlay
    node: Node

    @property
    def inputs(self) -> tuple[Value, ...]:
        return self.overlay.inputs(self.node)

    @property
    def attr(self) -> dict[str, Any]:
        return self.node.attr

    @property
    def value(self) -> Value:
        """The first result."""
        return self.node.outputs[0]

    def made_by(self, value: Value, op: Op) -> Site:
        """The node of `op` that made `value`. Raises NoMatch if it is none."""
        if value.node is None or value.node.op is not op:
            raise NoMatch(f"an operand is not made by {op.name}", value)
        return Site(self.overlay, value.node)

    def require(self, condition: bool, reason: str, at: Value | None = None) -> None:
        """Raises NoMatch, a near miss, unless the condition holds."""
        if not condition:
            raise NoMatch(reason, at, 2)


class LocalRule:
    """`rewritten` gives what takes the place of a node's results. `before` is an example in which
    the rule fires, `shapes` are its operands as in a signature."""

    shapes: ClassVar[str] = ""
    attributes: ClassVar[Mapping[str, Sequence[Any]]] = {}
    is_upward: ClassVar[bool] = True
    depth: ClassVar[int] = 2
    roots: ClassVar[tuple[Op, ...]] = ()
    needs: ClassVar[frozenset[Op]] = frozenset()

    @staticmethod
    def before(*operands: Any, **attrs: Any) -> Any:
        """An example of what the rule changes, for its self-check."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        return type(self).__name__

    def rewritten(self, site: Site) -> Sequence[Value]:
        """One value for every result of the node. Raises NoMatch with the reason."""
        raise NotImplementedError

    def find(self, overlay: Overlay, node: Node) -> Candidate:
        """The node itself: whether there is anything to make of it shows when it is made."""
        site = Site(overlay, node)
        return Candidate(node.outputs, (node,),
                         lambda: tuple(map(overlay.resolve, self.rewritten(site))))


class Undone(LocalRule):
    """A transpose of a transpose is one of the source, or the source itself; so are a reshape of a
    reshape and a slice of what was put together."""

    roots = (transpose, reshape, slice)
    shapes = "x[a, b, c], y[a, b, c]"

    @staticmethod
    def before(x: Value, y: Value) -> Any:
        return (transpose(transpose(x, order=(1, 0, 2)), order=(1, 0, 2)),
                reshape(reshape(x, shape=(1, *x.shape)), shape=(*x.shape, 1)),
                slice(concat(x, y, axis=2), axis=2, start=0, size=x.shape[2]))

    def rewritten(self, site: Site) -> Sequence[Value]:
        found = SIMPLER[site.node.op](site.node, site.inputs)
        if found is None or tuple(v.type.plain for v in found) != site.node.out_types:
            raise NoMatch("there is nothing to undo")
        return found


class CountedAxis(LocalRule):
    """An axis counted from the end is counted from the front: patterns know one of the two."""

    roots = (concat, slice, repeat_interleave)
    shapes = "x[a, b], y[a, b]"

    @staticmethod
    def before(x: Value, y: Value) -> Any:
        return (concat(x, y, axis=-1), slice(x, axis=-1, start=0, size=1),
                repeat_interleave(x, n=2, axis=-1))

    def rewritten(self, site: Site) -> Sequence[Value]:
        axis, rank = site.attr["axis"], len(site.inputs[0].shape)
        if axis >= 0:
            raise NoMatch("the axis is counted from the front")
        made: Value = site.node.op(*site.inputs, **{**site.attr, "axis": axis % rank})
        return [made]


class Twin(LocalRule):
    """A view or cast that is there already is not made again, so that what is equal is one value
    to the patterns."""

    roots = (reshape, transpose, expand, slice, cast, repeat_interleave)
    shapes = "x[a, b]"

    @staticmethod
    def before(x: Value) -> Any:
        return transpose(x, order=(1, 0)), transpose(x, order=(1, 0))

    def rewritten(self, site: Site) -> Sequence[Value]:
        node, inputs = site.node, site.inputs
        for other in site.overlay.users(inputs[0]):
            if (other is not None and other is not node and other.op is node.op
                    and other.attrs == node.attrs and site.overlay.inputs(other) == inputs):
                return other.outputs
        raise NoMatch("there is no other")


class InwardTranspose(LocalRule):
    """A transpose moves through what keeps rows as they are, until it meets another one; through a
    concat only if it meets one there."""

    roots = (transpose,)
    through = (repeat_interleave, slice, cast, concat)
    shapes = "x[a, b, c], y[a, c, b]"

    @staticmethod
    def before(x: Value, y: Value) -> Any:
        order, back = (2, 0, 1), (0, 2, 1)
        return (transpose(repeat_interleave(x, n=2, axis=-1), order=order),
                transpose(slice(x, axis=1, start=0, size=1), order=order),
                transpose(concat(x, transpose(y, order=back), axis=0), order=back))

    def rewritten(self, site: Site) -> Sequence[Value]:
        order, x = site.attr["order"], site.inputs[0]
        if x.node is None or x.node.op not in self.through:
            raise NoMatch("nothing to move through")
        inputs = site.overlay.inputs(x.node)
        if x.node.op in (cast, concat) and site.overlay.users(x) != [site.node]:
            raise NoMatch("it would be computed twice")
        if x.node.op is concat and not any(v.node and v.node.op is transpose for v in inputs):
            raise NoMatch("there is no other transpose")
        attrs = dict(x.node.attr)
        if "axis" in attrs:
            attrs["axis"] = order.index(attrs["axis"] % len(order))
        return [x.node.op(*(transpose(v, order=order) for v in inputs), **attrs)]


class TurnedGroups(LocalRule):
    """Turned heads that are cut in groups and turned again are cut as they were."""

    roots = (transpose,)
    needs = frozenset((reshape,))
    shapes = "x[a, 6, c, d]"

    @staticmethod
    def before(x: Value) -> Any:
        turned = transpose(x, order=(0, 2, 1, 3))
        a, c, _, d = turned.shape
        return transpose(reshape(turned, shape=(a, c, 2, 3, d)), order=(0, 2, 3, 1, 4))

    def rewritten(self, site: Site) -> Sequence[Value]:
        order, cut = site.attr["order"], site.made_by(site.inputs[0], reshape)
        x = site.made_by(cut.inputs[0], transpose).value
        for i in range(len(order) - 1):
            at = order[i]
            if order[i + 1] == at + 1 and merged_shape(cut.attr["shape"], at) == x.shape:
                turned = transpose(x, order=_without(order, at + 1))
                return [reshape(turned, shape=site.value.shape)]
        raise NoMatch("no axis is cut that stays together")


def _without(order: Sequence[int], axis: int) -> tuple[int, ...]:
    """An order of axes with one axis less: the one before it stands for both."""
    return tuple(a - (a > axis) for a in order if a != axis)


def merged_shape(shape: Sequence[Size], axis: int) -> tuple[Size, ...]:
    """A shape whose `axis` and the one after it are one; () if both are symbolic."""
    first, second = shape[axis:axis + 2]
    if isinstance(first, int):
        return (*shape[:axis], scaled(second, first), *shape[axis + 2:])
    if isinstance(second, int):
        return (*shape[:axis], scaled(first, second), *shape[axis + 2:])
    return ()


def merged(x: Value, axis: int) -> Value:
    """x with `axis` and the one after it as one: a reshape."""
    made: Value = reshape(x, shape=merged_shape(x.shape, axis))
    return made


def merged_heads(x: Value) -> Value:
    """x[b, g, n, ...] as [b, g * n, ...], under a transpose that keeps both side by side."""
    if x.node is not None and x.node.op is transpose:
        order = x.node.attr["order"]
        if order[2] == order[1] + 1:
            made: Value = transpose(merged(x.node.inputs[0], order[1]),
                                    order=_without(order, order[2]))
            return made
    return merged(x, 1)


class RepeatedRows(LocalRule):
    """An axis of 1 that is added, expanded and merged into the one before repeats its rows."""

    roots = (reshape,)
    needs = frozenset((expand,))
    shapes = "x[a, b, c]"

    @staticmethod
    def before(x: Value) -> Any:
        rows, rest = x.shape[:1], x.shape[1:]
        wide = expand(reshape(x, shape=(*rows, 1, *rest)), shape=(*rows, 3, *rest))
        return reshape(wide, shape=(*(scaled(size, 3) for size in rows), *rest))

    def rewritten(self, site: Site) -> Sequence[Value]:
        grown = site.made_by(site.inputs[0], expand)
        added = site.made_by(grown.inputs[0], reshape)
        thin, wide = added.attr["shape"], grown.attr["shape"]
        axes = [i for i, (a, b) in enumerate(zip(thin, wide, strict=True)) if a != b]
        site.require(len(axes) == 1, f"{len(axes)} axes are expanded, wanted one", grown.value)
        at, n = axes[0] - 1, wide[axes[0]]
        shape = (*thin[:at + 1], *thin[at + 2:])
        merged = (*shape[:at], scaled(shape[at], n), *shape[at + 1:]) if isinstance(n, int) else ()
        site.require(at >= 0 and site.attr["shape"] == merged,
                     "the expanded axis is not merged into the one before", grown.value)
        x = added.inputs[0]
        rows = x if x.shape == shape else reshape(x, shape=shape)
        return [repeat_interleave(rows, n=n, axis=at)]


class NegatedInPlace(LocalRule):
    """What is reshaped, negated and reshaped back is negated as it is."""

    roots = (reshape,)
    needs = frozenset((neg,))
    shapes = "x[a, b]"

    @staticmethod
    def before(x: Value) -> Any:
        return reshape(-reshape(x, shape=(*x.shape, 1)), shape=x.shape)

    def rewritten(self, site: Site) -> Sequence[Value]:
        negated = site.made_by(site.inputs[0], neg)
        x = site.made_by(negated.inputs[0], reshape).inputs[0]
        if x.shape != site.attr["shape"]:
            raise NoMatch("it is not reshaped back")
        return [neg(x)]


class Halves(LocalRule):
    """The two halves of a head are cut by slices, whether or not a split was written."""

    roots = (split,)
    shapes = "x[a, b, c, 6]"

    @staticmethod
    def before(x: Value) -> Any:
        return split(x, sizes=(3, 3), axis=-1)

    def rewritten(self, site: Site) -> Sequence[Value]:
        x, sizes = site.inputs[0], site.attr["sizes"]
        axis = site.attr["axis"] % len(x.shape)
        if len(x.shape) < 4 or axis != len(x.shape) - 1 or len(sizes) != 2 or len(set(sizes)) > 1:
            raise NoMatch("it does not cut a head in halves")
        return [slice(x, axis=axis, start=start, size=sizes[0]) for start in (0, sizes[0])]


class CastWhole(LocalRule):
    """A half of a head that is widened is a half of the widened head: rope widens all of it."""

    roots = (cast,)
    needs = frozenset((slice,))
    shapes = "x[a, b, c, 6]:bf16"

    @staticmethod
    def before(x: Value) -> Any:
        return tuple(cast(slice(x, axis=3, start=at, size=3), dtype="f32") for at in (0, 3))

    def rewritten(self, site: Site) -> Sequence[Value]:
        half = site.made_by(site.inputs[0], slice)
        x, size = half.inputs[0], half.attr["size"]
        if (len(x.shape) < 4 or half.attr["axis"] != len(x.shape) - 1
                or not isinstance(size, int) or x.shape[-1] != 2 * size):
            raise NoMatch("it is no half of a head")
        return [slice(cast(x, **site.attr), **half.attr)]


class RoundedTogether(LocalRule):
    """The halves of a head that are turned and rounded one by one are rounded together."""

    roots = (concat,)
    needs = frozenset((cast, sub))
    shapes = "x[a, b, c, 3]:f32, y[a, b, c, 3]:f32"

    @staticmethod
    def before(x: Value, y: Value) -> Any:
        return concat(cast(x - y, dtype="bf16"), cast(x + y, dtype="bf16"), axis=3)

    def rewritten(self, site: Site) -> Sequence[Value]:
        parts = [site.made_by(v, cast).inputs[0] for v in site.inputs]
        if [p.node.op for p in parts if p.node] != [sub, add] or parts[0].dtype != "f32":
            raise NoMatch("it is no head that is turned")
        return [cast(concat(*parts, **site.attr), dtype=site.value.dtype)]


class Doubled(LocalRule):
    """What is done to every number of a row that is there twice is done to it once."""

    roots = (cos, sin, cast, mul, reshape)
    shapes = "x[a, b]"

    @staticmethod
    def before(x: Value) -> Any:
        twice = concat(x, x, axis=-1)
        return (cos(twice), sin(repeat_interleave(x, n=2, axis=-1)), twice * 0.5,
                reshape(twice, shape=(1, *twice.shape)))

    def rewritten(self, site: Site) -> Sequence[Value]:
        x, *numbers = sorted(site.inputs, key=_is_number)
        if x.node is None or not all(map(_is_number, numbers)):
            raise NoMatch("nothing is there twice")
        row = _row_of(site.overlay, x)
        attrs = dict(site.attr)
        if site.node.op is reshape:
            if attrs["shape"][-1:] != x.shape[-1:]:
                raise NoMatch("rows do not stay rows")
            attrs["shape"] = (*attrs["shape"][:-1], row.shape[-1])
        made: Value = site.node.op(row, *numbers, **attrs)
        axis = len(made.shape) - 1
        if x.node.op is concat:
            return [concat(*[made] * len(x.node.inputs), axis=axis)]
        return [repeat_interleave(made, n=x.node.attr["n"], axis=axis)]


def _is_number(value: Value) -> bool:
    return value.node is not None and value.node.op is constant


def _row_of(overlay: Overlay, value: Value) -> Value:
    """What a value repeats along its last axis. Raises NoMatch if it does not."""
    node = value.node
    if node is not None and node.op in (concat, repeat_interleave):
        inputs = overlay.inputs(node)
        last = node.attr["axis"] % len(value.shape) == len(value.shape) - 1
        if last and len(set(inputs)) == 1 and inputs[0].shape != value.shape:
            return inputs[0]
    raise NoMatch("nothing is there twice")


RULES: tuple[Rule, ...] = (
    CountedAxis(), Twin(), Undone(), InwardTranspose(), TurnedGroups(), RepeatedRows(),
    NegatedInPlace(), Halves(), CastWhole(), RoundedTogether(), Doubled())
