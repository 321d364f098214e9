"""Operations are fused and opened, one level at a time, until kernels are left and what the
backend takes whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from graphdsl.errors import Loc
from graphdsl.ir import Graph, Node
from graphdsl.passes.base import Fired, Missed, Result, Target, in_bodies
from graphdsl.passes.catalogue import FUSIONS, groups, splits
from graphdsl.passes.cleanup import common_subexpressions, nearly_equal, tidied
from graphdsl.passes.engine import apply_rules
from graphdsl.passes.rewrite import inline
from graphdsl.passes.rules import Rule


@dataclass
class _Levels:
    """The opening of one graph, level by level."""

    steps: tuple[tuple[Rule, ...], ...]
    takes: frozenset[str]
    fired: list[Fired] = field(default_factory=list)
    missed: dict[Missed, None] = field(default_factory=dict)

    def opened(self, graph: Graph) -> Graph:
        """`graph` with nothing left to open."""
        graph = tidied(in_bodies(graph, self.opened))
        self.missed.update(dict.fromkeys(nearly_equal(graph)))
        while True:
            graph = self.fused(graph)
            opened = inline(graph, self.wanted)
            if opened is graph:
                return graph
            graph = tidied(opened)

    def fused(self, graph: Graph) -> Graph:
        """`graph` after all rules; again where they have made two values equal, for what reads
        the one and what reads the other may be one pattern now."""
        while True:
            before = len(self.fired)
            for rules in self.steps:
                graph, fired, missed = apply_rules(graph, rules)
                self.fired += fired
                self.missed.update(dict.fromkeys(missed))
            joined = common_subexpressions(graph) if len(self.fired) > before else graph
            if joined is graph:
                return graph
            graph = joined

    def wanted(self, node: Node) -> bool:
        return node.op.is_operation and node.name not in self.takes

    def near_misses(self) -> tuple[Missed, ...]:
        """The misses at places where the same rule did not fire on a later level."""
        fired = {(f.rule, loc, _written(f.scope)) for f in self.fired for loc in f.lines}
        first: dict[tuple[str, Loc | None, str], Missed] = {}
        for miss in self.missed:
            if (miss.rule, miss.loc, _written(miss.scope)) not in fired:
                first.setdefault((miss.rule, miss.loc, miss.reason), miss)
        return tuple(first.values())


def _written(scope: str) -> str:
    """The part of a scope that is made of Layers, without Operations that were opened."""
    parts = scope.split(".")
    return ".".join(p for p in parts if not p.endswith("()"))


@dataclass(frozen=True)
class Expand:
    """What a level reveals is offered to the rules before it is opened further."""

    name: ClassVar[str] = "expand"

    def run(self, graph: Graph, target: Target) -> Result:
        levels = _Levels((FUSIONS, splits(target), groups(target)), target.takes)
        new = levels.opened(graph)
        return Result(new, tuple(levels.fired), levels.near_misses())
