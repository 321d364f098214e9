"""Pointwise kernels after a matmul become its epilogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from graphdsl.ir import Graph
from graphdsl.op import Op
from graphdsl.passes.base import Result
from graphdsl.passes.loops import _through_body

if TYPE_CHECKING:
    from graphdsl.backend import Target

MATMUL_EPILOGUE = Op("matmul_epilogue", _through_body)


@dataclass(frozen=True)
class FuseEpilogues:
    name: ClassVar[str] = "epilogues"

    def run(self, graph: Graph, target: Target) -> Result:
        return Result(graph)
