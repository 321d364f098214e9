"""Building small layers for the CPU and comparing them with the reference."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from graphdsl.builder import BuildOptions, build_graph
from graphdsl.ir import Graph
from graphdsl.passes.samples import Samples, reference_outputs, samples
from graphdsl.reference import TOLERANCE, error_of, run
from graphdsl.runtime.operator import Operator
from graphdsl.runtime.ports import physical

Compare = Callable[..., Operator]


@pytest.fixture(scope="session")
def options(tmp_path_factory: pytest.TempPathFactory) -> BuildOptions:
    cache = tmp_path_factory.mktemp("cache")
    return BuildOptions(cache=cache, environment=dict(os.environ))


def excess(operator: Operator, graph: Graph, given: Samples) -> list[float]:
    """How much further every output (new state included) is from the exact result than the
    reference, which rounds after every kernel, is itself."""
    exact = reference_outputs(graph, given)
    rounded = run(graph, given.inputs, given.params, given.state)
    state = {v.name: physical(given.state[v.name], port)
             for v, port in zip(graph.state, operator.manifest["state"], strict=True)}
    found = operator.run(list(given.inputs.values()), operator.pack_weights(given.params),
                         list(state.values()))
    logical = [physical(state[p["name"]], p, back=True) for p in operator.manifest["state"]]
    return [error_of(ours, best) - error_of(theirs, best)
            for ours, theirs, best in zip([*found, *logical], rounded, exact, strict=True)]


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
                errors = excess(operator, graph, given)
                assert max(errors) <= TOLERANCE[dtype], (dims, count, errors)
        torch.set_num_threads(before)
        return operator
    return check
