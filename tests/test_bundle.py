"""Graphs that were put together compute what each of them does alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bundle import bundle, part_of, unbundled, with_prefix
from random_graphs import kernel_soup, random_layer, random_model

from graphdsl.ir import Dim, Graph, TensorType, Value
from graphdsl.passes.samples import Samples, reference_outputs, samples
from graphdsl.passes.verify import problem_of

GRAPHS = (kernel_soup(0), random_layer(1), kernel_soup(2), random_model(3))


def test_every_part_has_its_own_outputs() -> None:
    whole = bundle(GRAPHS)
    assert not problem_of(whole)
    given = samples(whole, 0)
    found = unbundled(GRAPHS, reference_outputs(whole, given))
    for i, graph in enumerate(GRAPHS):
        own = Samples(part_of(i, given.inputs), part_of(i, given.params), part_of(i, given.state),
                      given.dims)
        for a, b in zip(found[i], reference_outputs(graph, own), strict=True):
            torch.testing.assert_close(a, b)


def test_names_go_both_ways() -> None:
    given = {"g1.x": 1, "g1.w.0": 2, "g11.x": 3}
    assert part_of(1, given) == {"x": 1, "w.0": 2}
    assert with_prefix(1, part_of(1, given)) == {"g1.x": 1, "g1.w.0": 2}


@pytest.mark.parametrize("dim", [Dim("tokens", 1, 7), Dim("past", 0, 9, source="start")])
def test_dims_that_cannot_be_shared_are_refused(dim: Dim) -> None:
    x = Value(TensorType((dim,), "f32"), name="x")
    alone = Graph("one", (x,), (), (), (x,))
    with pytest.raises(ValueError, match=dim.name):
        bundle([GRAPHS[0], replace(alone, outputs=(x + x,))])
