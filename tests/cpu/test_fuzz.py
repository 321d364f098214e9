"""Random graphs, built for the CPU many in a library and compared with the reference: `make fuzz`
draws 500."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bundle import compare_bundle
from random_graphs import built_graph

from graphdsl.builder import BuildOptions

pytestmark = pytest.mark.fuzz

SIZES = ({"batch": 2, "tokens": 5}, {"batch": 1, "tokens": 1})


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_graphs_of_every_kind(built_seeds: range, dtype: str, options: BuildOptions,
                              record_property: Callable[..., None]) -> None:
    """Half of the graphs in either dtype, a step at once and a token at a time."""
    seeds = built_seeds[dtype == "bf16"::2]
    record_property("built", len(seeds))
    compare_bundle([built_graph(seed, dtype) for seed in seeds], options, dtype, SIZES,
                   threads=(1, 2))
