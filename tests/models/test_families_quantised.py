"""Which weights of every family are quantised."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_families import SMALL

from graphdsl.backends.cpu.backend import BACKEND
from graphdsl.layer import trace
from graphdsl.passes.pipeline import run_pipeline
from graphdsl.passes.quantise import quantised
from graphdsl.quant import Quant

STAY = {"bert": ["embed_types: it has only 2 rows"],
        "mixtral": ["layers.0.router and 2 more: it has only 4 rows"]}
"""Those that do not become what they are asked to be, besides the stacked weights of experts."""


@pytest.mark.parametrize("family", SMALL)
def test_all_linears_and_tables(family: str) -> None:
    graph = quantised(trace(SMALL[family], "bf16"), lambda name, kind: Quant(4, 16))
    target = replace(BACKEND.target, quants=True)
    done = run_pipeline(graph, target)
    missed = [m.reason for report in done.report if report.name == "quantise"
              for m in report.missed]
    assert missed == STAY.get(family, [])
    for param in done.graph.params:
        is_matrix = len(param.shape) == 2 and param.shape[0] not in (2, 4)
        assert (param.type.quant is not None) == is_matrix, param
