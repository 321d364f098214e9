"""Linears by the same experts of the same rows."""

from __future__ import annotations

from collections.abc import Callable

from passcase import CPU, PLAIN, assert_same, graph_of, leaf, line_of, names

from graphdsl.ir import Dim, Graph, Value
from graphdsl.ops import expert_linear, silu
from graphdsl.passes.pipeline import run_pipeline
from graphdsl.printer import text

ROWS = Dim("rows")


def mixture(of_params: bool = True, same_ids: bool = True) -> Graph:
    x, ids = leaf("x", ROWS, 8), leaf("ids", ROWS, dtype="i32")
    other = ids if same_ids else leaf("other", ROWS, dtype="i32")
    gate = leaf("gate", 3, 6, 8, kind="param")
    up = leaf("up", 3, 6, 8, kind="param" if of_params else "")
    made: Value = silu(expert_linear(x, gate, ids))  # gate
    made = made * expert_linear(x, up, other)  # up
    return graph_of(made)


def test_golden(golden: Callable[[str, str], None]) -> None:
    graph = mixture()
    lowered = run_pipeline(graph, CPU, verify=True)
    assert_same(graph, lowered, seed=1)
    recipes = [text(r, locations=False) for r in lowered.recipes.values()]
    golden("passes/join_experts.txt", "\n\n".join([text(lowered.graph, locations=False), *recipes]))


def test_every_target_joins_them() -> None:
    assert names(run_pipeline(mixture(), PLAIN, verify=True).graph).count("expert_linear") == 1


def test_refused_where_a_weight_is_no_param() -> None:
    lowered = run_pipeline(mixture(of_params=False), CPU, verify=True)
    assert names(lowered.graph).count("expert_linear") == 2
    missed, = [m for r in lowered.report for m in r.missed if m.rule == "JoinExperts"]
    assert missed.reason == "the weight of an expert_linear of this x is not a Param"
    assert (missed.loc, missed.at) == (line_of("gate", __file__), line_of("up", __file__))


def test_other_experts_are_left() -> None:
    lowered = run_pipeline(mixture(same_ids=False), CPU, verify=True)
    assert names(lowered.graph).count("expert_linear") == 2
    assert not [m for r in lowered.report for m in r.missed if m.rule == "JoinExperts"]


def test_more_experts_are_left() -> None:
    """The same numbers may pick from fewer experts and from more."""
    x, ids = leaf("x", ROWS, 8), leaf("ids", ROWS, dtype="i32")
    weights = [leaf(f"w{i}", n, 6, 8, kind="param") for i, n in enumerate((3, 4, 3))]
    graph = graph_of(*(expert_linear(x, w, ids) for w in weights))
    lowered = run_pipeline(graph, CPU)
    assert names(lowered.graph).count("expert_linear") == 2


def test_two_mixtures_one_after_the_other() -> None:
    x, ids = leaf("x", ROWS, 8), leaf("ids", ROWS, dtype="i32")
    for turn in range(2):
        weights = [leaf(f"w{turn}{i}", 3, 8, 8, kind="param") for i in range(2)]
        gate, up = (expert_linear(x, w, ids) for w in weights)
        x = silu(gate) * up
    lowered = run_pipeline(graph_of(x), CPU, verify=True)
    assert names(lowered.graph).count("expert_linear") == 2
