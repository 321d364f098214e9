"""Which kernels become one loop."""

from __future__ import annotations

import pytest
from passcase import CPU, assert_same, graph_of, leaf, names

from graphdsl.ir import Dim, Graph, Value
from graphdsl.ops import cast, cos, expand, linear, reduce_sum, sin, tanh, topk
from graphdsl.passes.pipeline import run_pipeline

BATCH, TOKENS = Dim("batch"), Dim("tokens")


def lowered_names(graph: Graph) -> list[str]:
    lowered = run_pipeline(graph, CPU, verify=True)
    assert_same(graph, lowered, seed=1)
    return names(lowered.graph)


def angles(readers: str) -> Graph:
    """Positions are cast, and become one number a row."""
    positions, steps = leaf("p", BATCH, TOKENS, dtype="i32"), leaf("s", 4, kind="param")
    numbers = cast(positions, dtype="f32")
    turned = numbers[..., None] * steps
    if readers == "also an output":
        return graph_of(cos(turned), sin(turned), numbers)
    if readers == "repeated":
        return graph_of(tanh(expand(numbers[..., None], shape=(BATCH, TOKENS, 4))))
    return graph_of(cos(turned), sin(turned))


@pytest.mark.parametrize(("readers", "loops"), [
    ("loops", 1), ("also an output", 2), ("repeated", 2)])
def test_a_cast_moves_behind_the_views_of_it(readers: str, loops: int) -> None:
    assert lowered_names(angles(readers)).count("loop") == loops


def test_a_cast_that_a_matmul_makes_stays_in_its_epilogue() -> None:
    x, w = leaf("x", TOKENS, 8, dtype="bf16"), leaf("w", 8, 8, dtype="bf16", kind="param")
    wide = cast(linear(x, w), dtype="f32")
    found = lowered_names(graph_of(tanh(wide[:, :4]) + wide[:, 4:]))
    assert found == ["matmul_epilogue", "slice", "slice", "loop"]


def test_views_of_views() -> None:
    """Weighted rows, as a mixture of experts adds them up."""
    x = leaf("x", TOKENS, 2, 8, dtype="bf16")
    weights, _ = topk(leaf("r", TOKENS, 4), k=2)
    wide = cast(x, dtype="f32")
    total: Value = wide[:, 0] * weights[:, :1] + wide[:, 1] * weights[:, 1:]
    assert lowered_names(graph_of(total)).count("loop") == 1


@pytest.mark.parametrize("shared", [True, False])
def test_a_rows_number_joins_those_who_read_it(shared: bool) -> None:
    x, row = leaf("x", TOKENS, 8), leaf("r", TOKENS, 1)
    number = tanh(row)
    others = (number,) if not shared else ()
    assert lowered_names(graph_of(x * number, *others)).count("loop") == 1 + (not shared)


def test_a_rows_number_that_two_spaces_read_is_made_once() -> None:
    x, y, row = leaf("x", TOKENS, 8), leaf("y", TOKENS, 4), leaf("r", TOKENS, 1)
    number = tanh(row)
    graph = graph_of(reduce_sum(x * number), reduce_sum(y * number))
    lowered = run_pipeline(graph, CPU, verify=True)
    made = [n for loop in lowered.graph.nodes if loop.body for n in loop.body.nodes
            if n.name == "tanh"]
    assert len(made) == 1
