"""Patterns: what `before` of a rule returns when it is called on patterns instead of values.

Calling an op on a pattern gives a pattern, so a rule is written as ordinary maths. Matching is
complete: operands of commutative ops are tried in both orders, whatever was bound before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from graphdsl.ir import Node, Value
from graphdsl.op import Op, constant
from graphdsl.ops import math as pointwise


class NoMatch(Exception):
    """Why a rule does not fire, and the value that is to blame."""

    def __init__(self, reason: str, at: Value | None = None, depth: int = 0) -> None:
        self.reason = reason
        self.at = at
        self.depth = depth
        super().__init__(reason)


@dataclass(frozen=True)
class AttrVar:
    """Stands for the value of an attribute, or for the number that an operand is; the same name is
    the same value everywhere."""

    name: str


@dataclass(frozen=True, eq=False)
class Application:
    """An op applied to patterns and numbers."""

    op: Op
    operands: tuple[Any, ...]
    attrs: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, eq=False)
class Pattern:
    """An operand of a rule by name, or an output of an application."""

    name: str = ""
    made_by: Application | None = None
    index: int = 0

    def apply_op(self, op: Op, operands: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
        """What calling an op on patterns gives: as many patterns as its signature has results."""
        application = Application(op, operands, tuple(sorted(attrs.items())))
        count = len(op.signature.outputs) if op.signature else 1
        outputs = tuple(Pattern("", application, i) for i in range(count))
        return outputs if len(outputs) > 1 else outputs[0]

    def __add__(self, other: Any) -> Any:
        return pointwise.add(self, other)

    def __radd__(self, other: Any) -> Any:
        return pointwise.add(other, self)

    def __sub__(self, other: Any) -> Any:
        return pointwise.sub(self, other)

    def __rsub__(self, other: Any) -> Any:
        return pointwise.sub(other, self)

    def __mul__(self, other: Any) -> Any:
        return pointwise.mul(self, other)

    def __rmul__(self, other: Any) -> Any:
        return pointwise.mul(other, self)

    def __truediv__(self, other: Any) -> Any:
        return pointwise.div(self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return pointwise.div(other, self)

    def __neg__(self) -> Any:
        return pointwise.neg(self)


@dataclass(frozen=True)
class Match:
    """What a pattern stands for: values and attributes by name, nodes by application."""

    bound: dict[str, Any] = field(default_factory=dict)
    values: dict[Pattern, Value] = field(default_factory=dict)
    nodes: dict[Application, Node] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self.bound:
            raise AttributeError(name)
        return self.bound[name]

    def require(self, condition: bool, reason: str, at: Value | None = None) -> None:
        """Refuses the match, with the value that is to blame, unless the condition holds."""
        if not condition:
            raise NoMatch(reason, at, len(self.nodes))

    def is_meant(self, condition: bool) -> None:
        """Refuses the match, without a near miss, where it is something else altogether unless
        the condition holds."""
        if not condition:
            raise NoMatch("it is something else", depth=-1)

    def with_node(self, application: Application, node: Node) -> Match:
        return replace(self, nodes={**self.nodes, application: node})

    def with_value(self, pattern: Pattern, value: Value) -> Match:
        bound = {**self.bound, pattern.name: value} if pattern.name else self.bound
        return replace(self, bound=bound, values={**self.values, pattern: value})

    def with_attr(self, name: str, value: Any) -> Match:
        return replace(self, bound={**self.bound, name: value})


@dataclass
class Matcher:
    """One search for a pattern; keeps the failure that came deepest."""

    inputs_of: Callable[[Node], Sequence[Value]]
    best: NoMatch = field(default_factory=lambda: NoMatch("it takes other operands"))

    def fail(self, reason: str, at: Value | None, depth: int) -> None:
        """Notes a failure."""
        if depth > self.best.depth:
            self.best = NoMatch(reason, at, depth)

    def matches(self, pattern: Pattern, value: Value, match: Match) -> Iterator[Match]:
        """All ways in which `value` can be what `pattern` says."""
        known = match.values.get(pattern)
        if known is not None:
            if known is value:
                yield match
            else:
                name = pattern.name or (pattern.made_by.op.name if pattern.made_by else "")
                self.fail(f"{name} would have to be two different values", value,
                          len(match.nodes))
            return
        if pattern.made_by is None:
            yield match.with_value(pattern, value)
            return
        application, node = pattern.made_by, value.node
        if node is None or node.op is not application.op or value.index != pattern.index:
            found = f"made by {node.name}" if node else f"the {value.kind or 'input'} {value.name}"
            self.fail(f"an operand is {found}, wanted one made by {application.op.name}", value,
                      len(match.nodes))
            return
        for inner in self._applications(application, node, match):
            yield inner.with_value(pattern, value)

    def _applications(self, application: Application, node: Node,
                      match: Match) -> Iterator[Match]:
        known = match.nodes.get(application)
        if known is not None:
            if known is node:
                yield match
            return
        operands = self.inputs_of(node)
        bound = self._attrs(application, node, match.with_node(application, node))
        # With other optional operands an op means something else: no reason to speak of it.
        if bound is None or len(operands) != len(application.operands):
            return
        yield from self._operands(application.operands, operands, bound)
        if node.op.commutative:
            yield from self._operands(application.operands, operands[::-1], bound)

    def _attrs(self, application: Application, node: Node, match: Match) -> Match | None:
        for name, wanted in application.attrs:
            found = node.attr.get(name)
            if isinstance(wanted, AttrVar):
                if wanted.name not in match.bound:
                    match = match.with_attr(wanted.name, found)
                    continue
                wanted = match.bound[wanted.name]
            if found != wanted and name == "given":
                return None
            if found != wanted:
                self.fail(f"{name} of {node.name} is {found}, wanted {wanted}", node.outputs[0],
                          len(match.nodes))
                return None
        return match

    def _operands(self, patterns: Sequence[Any], values: Sequence[Value],
                  match: Match) -> Iterator[Match]:
        if not patterns:
            yield match
        elif isinstance(patterns[0], Pattern):
            for first in self.matches(patterns[0], values[0], match):
                yield from self._operands(patterns[1:], values[1:], first)
        elif isinstance(patterns[0], AttrVar):
            bound = self._number(patterns[0], values[0], match)
            if bound is not None:
                yield from self._operands(patterns[1:], values[1:], bound)
        elif is_number(values[0], patterns[0]):
            yield from self._operands(patterns[1:], values[1:], match)
        else:
            self.fail(f"not the number {patterns[0]}", values[0], len(match.nodes))

    def _number(self, wanted: AttrVar, value: Value, match: Match) -> Match | None:
        """An attribute of the rule that is written as an operand: the number found there."""
        if value.node is None or value.node.op is not constant:
            self.fail(f"{wanted.name} is {value.name or value.type}, wanted a number", value,
                      len(match.nodes))
            return None
        number = value.node.attr["value"]
        if match.bound.get(wanted.name, number) == number:
            return match.with_attr(wanted.name, number)
        self.fail(f"{wanted.name} is {number}, wanted {match.bound[wanted.name]}", value,
                  len(match.nodes))
        return None


def is_number(value: Value, number: Any) -> bool:
    """Whether a value is the constant `number`."""
    return (value.node is not None and value.node.op is constant
            and bool(value.node.attr["value"] == number))
