"""Operations are fused and opened, one level at a time, until kernels are left and what the
backend takes whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from graphdsl.ir import Graph
from graphdsl.passes.base import Fired, Missed, Result, in_bodies
from graphdsl.passes.cleanup import common_subexpressions
from graphdsl.passes.rewrite import inline

if TYPE_CHECKING:
    from graphdsl.backend import Target


@dataclass(frozen=True)
class Expand:
    """What a level reveals is offered to the rules before it is opened further."""

    name: ClassVar[str] = "expand"

    def run(self, graph: Graph, target: Target) -> Result:
        fired: list[Fired] = []
        missed: list[Missed] = []

        def expanded(graph: Graph) -> Graph:
            graph = common_subexpressions(graph)
            while True:
                opened = inline(graph, lambda n: n.op.is_operation and n.name not in target.takes)
                if opened is graph:
                    return graph
                graph = opened

        return Result(expanded(in_bodies(graph, expanded)), tuple(fired), tuple(missed))
