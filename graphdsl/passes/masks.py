"""What a mask written as plain maths says about each score: conditions, and what is added.

A mask is broadcast to the scores [batch, heads, tokens, keys], whose axes are 0 to 3 here. Values
of fewer axes are followed through reshapes and expands by the score's axis that each of theirs is.
A condition on whole numbers becomes one form: a sum of leaves, tokens and keys that is at least 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce

from graphdsl.ir import FLOATS, Node, Size, Value, add_sizes, scaled
from graphdsl.op import Op, constant
from graphdsl.ops.math import (
    add,
    as_dtype,
    cast,
    greater,
    greater_equal,
    less,
    less_equal,
    logical_and,
    logical_not,
    logical_or,
    neg,
    sub,
    where,
)
from graphdsl.ops.shape import arange, expand, reshape
from graphdsl.passes.match import Match, is_number
from graphdsl.passes.overlay import Overlay

HIDDEN = -1e30
"""What is added to the score of a key that is not seen: e to its power is 0, and a row of it alone
is not nan."""

Axes = tuple[int, ...]
"""The score's axis of every axis of a value."""

TOKENS, KEYS = 2, 3


def is_low(number: object, dtype: str) -> bool:
    """Whether a score that this number replaces has no weight."""
    least = -65504.0 if dtype == "f16" else -1e9
    return isinstance(number, int | float) and number <= least


def check_hides(m: Match, condition: Value, low: object, scores: Value) -> None:
    """Refuses a choice between scores and a number that is no mask."""
    m.require(is_low(low, scores.dtype),
              f"what is not seen gets {low}, wanted -inf or at most -1e9", scores)
    m.require(condition.shape[-1:] == scores.shape[-1:],
              f"the condition is {condition.type} and does not tell keys apart", condition)


@dataclass(frozen=True)
class Placed:
    """A value, and the score's axis of each of its axes."""

    value: Value
    axes: Axes

    @property
    def wide(self) -> tuple[Axes, tuple[Size, ...]]:
        """The axes whose size is not 1, and the sizes."""
        kept = [(a, s) for a, s in zip(self.axes, self.value.shape, strict=True) if s != 1]
        return tuple(a for a, _ in kept), tuple(s for _, s in kept)

    def at(self, axes: Axes) -> Value:
        """The value with these axes, of size 1 where it has none."""
        sizes = dict(zip(*self.wide, strict=True))
        shape = tuple(sizes.get(axis, 1) for axis in axes)
        if self.value.shape == shape:
            return self.value
        made: Value = reshape(self.value, shape=shape)
        return made

    @property
    def whole(self) -> Value:
        """The value as it is, if its axes are the last ones, else with all four."""
        rank = len(self.axes)
        last = all(a == i or s == 1 for a, s, i in
                   zip(self.axes, self.value.shape, range(4 - rank, 4), strict=True))
        return self.value if last else self.at((0, 1, 2, 3))


def placed(leaf: Value, wide: Axes) -> Placed:
    """A leaf whose axes that are not 1 are these of the score."""
    rest = iter(wide)
    return Placed(leaf, tuple(next(rest) if size != 1 else 0 for size in leaf.shape))


Term = tuple[Value | None, Axes]
"""A leaf by its axes that are not 1; None: the number of the token or key, counted from 0."""


@dataclass(frozen=True)
class Form:
    """A sum of leaves with whole coefficients, and a constant."""

    terms: Mapping[Term, int] = field(default_factory=dict)
    const: Size = 0

    def plus(self, other: Form, factor: int = 1) -> Form:
        """self + factor * other."""
        total = dict(self.terms)
        for term, k in other.terms.items():
            total[term] = total.get(term, 0) + factor * k
        return Form({t: k for t, k in total.items() if k},
                    add_sizes(self.const, scaled(other.const, factor)))


@dataclass(frozen=True)
class Condition:
    """One thing that has to hold where a key is seen: `form` >= 0 where it is understood; the bool
    itself (or its opposite)."""

    placed: Placed
    opposite: bool = False
    form: Form | None = None

    @property
    def value(self) -> Value:
        value = self.placed.whole
        if not self.opposite:
            return value
        made: Value = logical_not(value)
        return made


@dataclass(frozen=True)
class Mask:
    """All conditions, and all that is added to the scores."""

    conditions: tuple[Condition, ...] = ()
    added: tuple[Placed, ...] = ()

    def and_(self, other: Mask) -> Mask:
        return Mask(self.conditions + other.conditions, self.added + other.added)

    def without(self, condition: Condition) -> Mask:
        return replace(self, conditions=tuple(c for c in self.conditions if c is not condition))

    @property
    def value(self) -> Value | None:
        """The mask that says all this; None if there is nothing to say."""
        seen = _joined(logical_and, (c.value for c in self.conditions))
        bias = _joined(add, (as_dtype(a.whole, "f32") for a in self.added))
        if seen is None or bias is None:
            return bias if seen is None else seen
        made: Value = where(seen, bias, HIDDEN)
        return made


def _joined(op: Op, values: Iterable[Value]) -> Value | None:
    values = list(values)
    return reduce(op, values) if values else None


def _moved(node: Node, source: Value, axes: Axes) -> Axes | None:
    """The axes of what a reshape or expand is of; None if more than axes of 1 come or go."""
    if node.op is expand:
        return axes
    wide, sizes = Placed(node.outputs[0], axes).wide
    if tuple(s for s in source.shape if s != 1) != sizes:
        return None
    return placed(source, wide).axes


@dataclass(frozen=True)
class Reader:
    """Reads masks in a graph under change."""

    overlay: Overlay

    def mask(self, value: Value, axes: Axes | None = None) -> Mask:
        """What a mask, bool or added, says."""
        rank = len(value.shape)
        axes = tuple(range(4 - rank, 4)) if axes is None else axes
        if value.dtype == "bool":
            return Mask(self.conditions(value, axes))
        return self.bias(value, axes)

    def bias(self, value: Value, axes: Axes) -> Mask:
        """What is added: sums and choices between a value and a large negative number."""
        whole, node = Mask((), (Placed(value, axes),)), value.node
        if is_number(value, 0):
            return Mask()
        if node is None or value.dtype not in FLOATS:
            return whole
        inputs = self.overlay.inputs(node)
        if node.op is add:
            a, b = (self.bias(v, axes[len(axes) - len(v.shape):]) for v in inputs)
            return a.and_(b)
        if node.op is where:
            return self.choice(inputs, axes) or whole
        if node.op is cast:
            inner = self.bias(inputs[0], axes)
            return inner if inner.conditions else whole
        moved = _moved(node, inputs[0], axes) if node.op in (reshape, expand) else None
        inner = self.bias(inputs[0], moved) if moved is not None else whole
        return inner if inner.conditions else whole

    def choice(self, inputs: tuple[Value, ...], axes: Axes) -> Mask | None:
        """where(seen, bias, low) and where(hidden, low, bias)."""
        seen, first, second = inputs
        for bias, low, opposite in ((first, second, False), (second, first, True)):
            number = low.node.attr["value"] if low.node and low.node.op is constant else 0
            if is_low(number, low.dtype):
                own = axes[len(axes) - len(seen.shape):]
                inner = self.bias(bias, axes[len(axes) - len(bias.shape):])
                return Mask(self.conditions(seen, own, opposite)).and_(inner)
        return None

    def conditions(self, value: Value, axes: Axes, opposite: bool = False,
                   ) -> tuple[Condition, ...]:
        """The conditions that a bool, or its opposite, is all of."""
        node, whole = value.node, Condition(Placed(value, axes), opposite)
        if node is None:
            return (whole,)
        inputs = self.overlay.inputs(node)
        if node.op is (logical_or if opposite else logical_and):
            return tuple(c for v in inputs for c in
                         self.conditions(v, axes[len(axes) - len(v.shape):], opposite))
        if node.op is logical_not:
            return self.conditions(inputs[0], axes, not opposite)
        if node.op in (reshape, expand):
            moved = _moved(node, inputs[0], axes)
            return (whole,) if moved is None else self.conditions(inputs[0], moved, opposite)
        return (replace(whole, form=self.comparison(node, inputs, axes, opposite)),)

    def comparison(self, node: Node, inputs: tuple[Value, ...], axes: Axes,
                   opposite: bool) -> Form | None:
        """A comparison of whole numbers as a form that is not negative."""
        if node.op not in COMPARED or inputs[0].dtype != "i32":
            return None
        small, large = inputs[::COMPARED[node.op][0]]
        forms = [self.form(v, axes[len(axes) - len(v.shape):]) for v in (small, large)]
        found = forms[1].plus(forms[0], -1).plus(Form({}, COMPARED[node.op][1]))
        return Form({}, -1).plus(found, -1) if opposite else found

    def form(self, value: Value, axes: Axes) -> Form:
        """A whole number as a sum."""
        node = value.node
        leaf = Form({(value, Placed(value, axes).wide[0]): 1})
        if node is None:
            return leaf
        inputs = self.overlay.inputs(node)
        parts = [(v, axes[len(axes) - len(v.shape):]) for v in inputs]
        if node.op is constant:
            return Form({}, node.attr["value"])
        if node.op is arange:
            # One number alone, 0, is broadcast: it counts neither tokens nor keys.
            return Form() if value.shape == (1,) else Form({(None, axes): 1})
        if node.op in (add, sub):
            first, second = (self.form(*part) for part in parts)
            return first.plus(second, 1 if node.op is add else -1)
        if node.op is neg:
            return Form().plus(self.form(*parts[0]), -1)
        moved = _moved(node, inputs[0], axes) if node.op in (reshape, expand) else None
        return leaf if moved is None else self.form(inputs[0], moved)


COMPARED: Mapping[Op, tuple[int, int]] = {
    less_equal: (1, 0), less: (1, -1), greater_equal: (-1, 0), greater: (-1, -1)}
"""By comparison: 1 if the first operand is the smaller one, -1 if the second is; what to add to
large - small for a number that is not negative."""
