"""Fusion rules: what a rule is, and how one is found at a node.

A FusionRule is two functions that both run on values: `before` is what is looked for, `after` what
takes its place. A GroupRule makes one node of several that share something.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

from graphdsl.ir import Node, Value
from graphdsl.op import Op
from graphdsl.passes.match import Application, AttrVar, Match, Matcher, NoMatch, Pattern
from graphdsl.passes.overlay import Overlay


@dataclass(frozen=True)
class Candidate:
    """A place where a rule could fire: the values to replace, the nodes that this removes, and
    the function that makes the new values."""

    values: tuple[Value, ...]
    nodes: tuple[Node, ...]
    make: Callable[[], Any]


class Rule(Protocol):
    """What the engine needs of a rule."""

    @property
    def name(self) -> str: ...

    @property
    def roots(self) -> tuple[Op, ...]: ...

    @property
    def depth(self) -> int: ...

    @property
    def needs(self) -> frozenset[Op]:
        """Ops without which there is nothing to find, and nothing to say about it."""

    @property
    def is_upward(self) -> bool:
        """Whether it makes more of what a user wrote, so that the inside of an opened Operation of
        the library is none of its business."""

    def find(self, overlay: Overlay, node: Node) -> Candidate:
        """Raises NoMatch, with the reason, where the rule cannot fire at `node`."""


@dataclass(frozen=True)
class Compiled:
    """`before` as patterns; the first is the root, the others are parts of its expression."""

    outputs: tuple[Pattern, ...]
    operands: tuple[str, ...]
    attrs: tuple[str, ...]
    depth: int

    @property
    def root(self) -> Application:
        assert self.outputs[0].made_by is not None
        return self.outputs[0].made_by


def compiled(rule: type[FusionRule]) -> Compiled:
    """The patterns of a rule."""
    parameters = inspect.signature(rule.before).parameters.values()
    operands = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    attrs = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
    made = rule.before(*map(Pattern, operands), **{name: AttrVar(name) for name in attrs})
    outputs: tuple[Pattern, ...] = made if isinstance(made, tuple) else (made,)
    made_by = {p.made_by for p in _parts(outputs[0]) if isinstance(p, Pattern)}
    assert all(p.made_by in made_by for p in outputs), (
        f"{rule.__name__}: the other outputs have to be parts of the first one's expression")
    return Compiled(outputs, operands, attrs, _depth(outputs[0]))


def _parts(pattern: Any) -> set[Any]:
    if not isinstance(pattern, Pattern) or pattern.made_by is None:
        return {pattern}
    return {pattern}.union(*map(_parts, pattern.made_by.operands))


def _depth(pattern: Any) -> int:
    if not isinstance(pattern, Pattern) or pattern.made_by is None:
        return 0
    return 1 + max(map(_depth, pattern.made_by.operands), default=0)


class FusionRule:
    """`before(...)` becomes `after(...)`.

    Operands are positional, attributes keyword-only. Both return the same outputs; the first of
    `before` is the root, the others are values inside of its expression that stay available.
    `shapes` and `attributes` say what the self-check draws: operands as in a signature, and some
    values of every attribute; operands that are named in `params` are Params.
    """

    shapes: ClassVar[str] = ""
    attributes: ClassVar[Mapping[str, Sequence[Any]]] = {}
    params: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def before(*operands: Any, **attrs: Any) -> Any:
        raise NotImplementedError

    @staticmethod
    def after(*operands: Any, **attrs: Any) -> Any:
        raise NotImplementedError

    is_upward: ClassVar[bool] = True
    quiet: ClassVar[int] = 0
    """A match that ends after so few nodes of the pattern is no near miss: such nodes are anywhere
    and say nothing of what is meant."""

    def when(self, m: Match) -> None:
        """What else has to hold; refuses by m.require(condition, reason, at=value)."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def roots(self) -> tuple[Op, ...]:
        return (self.patterns.root.op,)

    @cached_property
    def patterns(self) -> Compiled:
        """`before` as patterns."""
        return compiled(type(self))

    @property
    def depth(self) -> int:
        """How far a match reaches from its root."""
        return self.patterns.depth

    @cached_property
    def needs(self) -> frozenset[Op]:
        """All ops of a pattern whose root is pointwise; of another root, that alone makes a near
        miss."""
        root = self.patterns.root.op
        if root.kind != "pointwise":
            return frozenset([root])
        parts = _parts(self.patterns.outputs[0])
        return frozenset(p.made_by.op for p in parts if isinstance(p, Pattern) and p.made_by)

    def find(self, overlay: Overlay, node: Node) -> Candidate:
        """The first match at `node` that nothing speaks against."""
        pattern = self.patterns
        matcher = Matcher(overlay.inputs)
        root = pattern.outputs[0]
        for match in matcher.matches(root, node.outputs[root.index], Match()):
            try:
                return self._checked(overlay, pattern, match)
            except NoMatch as failure:
                if failure.depth >= 0:
                    matcher.fail(failure.reason, failure.at, len(match.nodes) + 1)
        best = matcher.best
        raise best if best.depth > self.quiet else NoMatch(best.reason, best.at)

    def _checked(self, overlay: Overlay, pattern: Compiled, match: Match) -> Candidate:
        replaced = tuple(match.nodes[p.made_by].outputs[p.index] for p in pattern.outputs
                         if p.made_by)
        nodes = tuple(dict.fromkeys(match.nodes.values()))
        for value in (v for n in nodes for v in n.outputs if v not in replaced):
            overlay.check_inner(value, nodes)
        if len(replaced) > 1:
            overlay.check_no_cycle(nodes)
        self.when(match)
        operands = [match.bound[name] for name in pattern.operands]
        attrs = {name: match.bound[name] for name in pattern.attrs}
        return Candidate(replaced, nodes, lambda: self.after(*operands, **attrs))


class GroupRule:
    """Nodes that share something become one: `members` finds them, `after` makes one value for
    each. `before` is an example in which the rule fires, `shapes` are its operands as in a
    signature, and those named in `params` are Params."""

    shapes: ClassVar[str] = ""
    attributes: ClassVar[Mapping[str, Sequence[Any]]] = {}
    params: ClassVar[tuple[str, ...]] = ()
    is_upward: ClassVar[bool] = False

    @property
    def depth(self) -> int:
        return 1

    @property
    def needs(self) -> frozenset[Op]:
        return frozenset()

    @staticmethod
    def before(*operands: Any, **attrs: Any) -> Any:
        """An example of what the rule changes, for its self-check."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def roots(self) -> tuple[Op, ...]:
        raise NotImplementedError

    def members(self, overlay: Overlay, node: Node) -> Sequence[Node]:
        """Two or more nodes, `node` among them. Raises NoMatch with the reason."""
        raise NotImplementedError

    def after(self, operands: Sequence[Sequence[Value]]) -> Sequence[Value]:
        """One value for every member, made of their operands."""
        raise NotImplementedError

    def find(self, overlay: Overlay, node: Node) -> Candidate:
        """The group of `node`."""
        nodes = tuple(self.members(overlay, node))
        overlay.check_no_cycle(nodes)
        operands = [overlay.inputs(n) for n in nodes]
        return Candidate(tuple(n.outputs[0] for n in nodes), nodes, lambda: self.after(operands))
