"""Building small layers for the CPU and comparing them with the reference."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bundle import excess, outcome
from quick import quick_environment

from graphdsl.builder import BuildOptions, build_graph
from graphdsl.ir import Graph
from graphdsl.passes.samples import samples
from graphdsl.reference import TOLERANCE
from graphdsl.runtime.operator import Operator

Compare = Callable[..., Operator]


@pytest.fixture(scope="session")
def options(tmp_path_factory: pytest.TempPathFactory) -> BuildOptions:
    cache = tmp_path_factory.mktemp("cache")
    return BuildOptions(cache=cache, environment=dict(os.environ))


@pytest.fixture(scope="session")
def quick_options(options: BuildOptions) -> BuildOptions:
    """For tests of how calls are put together, whose kernels others compile as for users."""
    return replace(options, cache=options.cache / "quick", environment=quick_environment())


@pytest.fixture(scope="session")
def compare(options: BuildOptions) -> Compare:
    """Builds a graph and compares it with the reference for several sizes and thread counts."""
    def check(graph: Graph, dtype: str = "f32", sizes: tuple[Mapping[str, int], ...] = ({},),
              threads: tuple[int, ...] = (2,), seed: int = 0) -> Operator:
        built = build_graph(graph, BuildOptions(cache=options.cache, dtype=dtype,
                                                environment=options.environment))
        operator = Operator(Path(built.path))
        before = torch.get_num_threads()
        for count in threads:
            torch.set_num_threads(count)
            for dims in sizes:
                given = samples(graph, seed, dims)
                errors = excess(graph, given, outcome(operator, graph, given))
                assert max(errors) <= TOLERANCE[dtype], (dims, count, errors)
        torch.set_num_threads(before)
        return operator
    return check
