"""What a pass is and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

from graphdsl.errors import Loc
from graphdsl.ir import Graph, Value
from graphdsl.passes.repeat import REPEAT
from graphdsl.passes.rewrite import substitute

if TYPE_CHECKING:
    from graphdsl.backend import Target


@dataclass(frozen=True)
class Fired:
    """A rule that changed the graph, at the user's line; `lines` are those of all that it took."""

    rule: str
    loc: Loc | None
    scope: str = ""
    lines: tuple[Loc | None, ...] = ()

    def __str__(self) -> str:
        place = f" at {self.loc}" if self.loc else ""
        return f"{self.rule}{place}{f' ({self.scope})' if self.scope else ''}"


@dataclass(frozen=True)
class Missed:
    """A rule that nearly matched, why it did not, and the line of the value that is to blame."""

    rule: str
    loc: Loc | None
    scope: str
    reason: str
    at: Loc | None = None
    matched: int = field(default=2, compare=False)
    """Nodes of the pattern that were found. Where it is one, that one alone brought the rule up,
    and the user may have meant something else."""

    def __str__(self) -> str:
        culprit = f" (made at {self.at})" if self.at and self.at != self.loc else ""
        return f"{Fired(self.rule, self.loc, self.scope)}: {self.reason}{culprit}"


@dataclass(frozen=True)
class Result:
    """What a pass returns. `recipes` holds, for params that the pass has made, the graph of
    params that computes them when weights are loaded."""

    graph: Graph
    fired: tuple[Fired, ...] = ()
    missed: tuple[Missed, ...] = ()
    recipes: Mapping[str, Graph] = field(default_factory=dict)


class Pass(Protocol):
    """A frozen dataclass whose fields are the pass's options, each with a default."""

    name: ClassVar[str]

    def run(self, graph: Graph, target: Target) -> Result: ...


class BackendPass(Pass, Protocol):
    """A pass that a Target brings. `rules` are the names under which it reports."""

    rules: ClassVar[tuple[str, ...]]


class CheckFailed(Exception):
    """Something that graphdsl verified about its own work does not hold (exit code 1)."""


def in_bodies(graph: Graph, change: Callable[[Graph], Graph]) -> Graph:
    """`graph` with the bodies of its repeats changed; what they take and return stays."""
    new: dict[Value, Value] = {}
    for node in graph.nodes:
        if node.op is not REPEAT or node.body is None:
            continue
        body = change(node.body)
        if body is not node.body:
            changed = replace(node, body=body)
            new.update(zip(node.outputs, changed.outputs, strict=True))
    return substitute(graph, new) if new else graph
