"""One weight for gate and up: its linear is split where both meet in one epilogue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from passcase import CPU, SINGLE, WHOLE, assert_same, graph_of, leaf, line_of, names, self_check

from graphdsl.ir import Dim, Graph, Value
from graphdsl.ops.activation import gelu, silu, swiglu
from graphdsl.ops.linear import linear, matmul_nt
from graphdsl.ops.math import tanh
from graphdsl.ops.shape import reshape, slice, split
from graphdsl.passes.base import Missed
from graphdsl.passes.catalogue import groups
from graphdsl.passes.engine import apply_rules
from graphdsl.passes.linear import MergeLinears, SplitLinear
from graphdsl.passes.pipeline import Lowered, run_pipeline
from graphdsl.printer import text

TOKENS = Dim("tokens")
X = leaf("x", TOKENS, 8)
GATE_UP, BIAS = leaf("gate_up", 12, 8, kind="param"), leaf("bias", 12, kind="param")
WQ, WK = leaf("wq", 16, 8, kind="param"), leaf("wk", 4, 8, kind="param")


def gated(wide: Value) -> Value:
    gate, up = split(wide, sizes=(6, 6))
    y: Value = silu(gate) * up
    return y


def fired(lowered: Lowered) -> list[str]:
    return [f.rule for report in lowered.report for f in report.fired]


def test_golden(golden: Callable[[str, str], None]) -> None:
    before = graph_of(gated(linear(X, GATE_UP, BIAS)))
    lowered = run_pipeline(before, CPU, verify=True)
    assert fired(lowered).count("SplitLinear") == 1
    recipes = [text(r, locations=False) for r in lowered.recipes.values()]
    golden("passes/split_linear.txt", "\n\n".join([
        text(before, locations=False), f"fired: {', '.join(dict.fromkeys(fired(lowered)))}",
        text(lowered.graph, locations=False), *recipes]))


WAYS: dict[str, Callable[[], Value]] = {
    "swiglu of a split": lambda: swiglu(*split(linear(X, GATE_UP), sizes=(6, 6))),
    "geglu": lambda: (lambda wide: gelu(wide[..., 6:]) * wide[..., :6])(linear(X, GATE_UP)),
    "with a bias": lambda: gated(linear(X, GATE_UP, BIAS)),
    "by a kernel": lambda: gated(matmul_nt(X, GATE_UP)),
    "a piece that nobody reads": lambda: (
        lambda pieces: tanh(pieces[0]) * pieces[2])(split(linear(X, GATE_UP), sizes=(5, 2, 5))),
    "pieces that overlap": lambda: (
        lambda wide: wide[..., :7] * wide[..., 5:])(linear(X, GATE_UP)),
    "meeting after a while": lambda: (
        lambda wide: tanh(silu(wide[..., :6]) + 1.0) * tanh(wide[..., 6:]))(linear(X, GATE_UP)),
}


@pytest.mark.parametrize("way", WAYS)
def test_one_kernel_is_left(way: str) -> None:
    graph = graph_of(WAYS[way]())
    lowered = run_pipeline(graph, CPU, verify=True)
    assert "SplitLinear" in fired(lowered)
    assert names(lowered.graph) == ["matmul_epilogue"]
    assert_same(graph, lowered)


@pytest.mark.parametrize("target", [WHOLE, SINGLE], ids=lambda t: t.name)
def test_epilogues_of_one_matmul_keep_the_wide_linear(target: Any) -> None:
    graph = graph_of(gated(linear(X, GATE_UP)))
    lowered = run_pipeline(graph, target, verify=True)
    assert "SplitLinear" not in fired(lowered)
    assert_same(graph, lowered)


def test_siblings_are_merged_without_what_is_split() -> None:
    """q, k, gate and up of one x: two linears for the merge, two for the epilogue."""
    graph = graph_of(linear(X, WQ), gated(linear(X, GATE_UP)), linear(X, WK))
    lowered = run_pipeline(graph, CPU, verify=True)
    assert {"SplitLinear", "MergeLinears"} <= set(fired(lowered))
    assert sorted(names(lowered.graph)) == ["matmul_epilogue", "matmul_nt", "split"]
    assert_same(graph, lowered)


def test_idempotent() -> None:
    graph = graph_of(gated(linear(X, GATE_UP)))
    rules = [SplitLinear(), MergeLinears(meeting=2)]
    once, first, _ = apply_rules(graph, rules)
    assert [f.rule for f in first] == ["SplitLinear"]
    assert not apply_rules(once, rules)[1]


def misses(graph: Graph, rule: SplitLinear | None = None) -> list[Missed]:
    _, done, missed = apply_rules(graph, [rule or SplitLinear()])
    assert not done
    return list(missed)


def only_miss(graph: Graph, rule: SplitLinear | None = None) -> Missed:
    (miss,) = misses(graph, rule)
    return miss


def test_weight_is_not_a_param() -> None:
    weight = reshape(tanh(leaf("k", 24, 4)), shape=(12, 8))  # computed
    miss = only_miss(graph_of(gated(linear(X, weight))))  # linear
    assert miss.reason == "the weight f32[12, 8] is not a Param"
    assert (miss.loc, miss.at) == (line_of("linear", __file__), line_of("computed", __file__))


def test_whole_result_is_read_too() -> None:
    wide = linear(X, GATE_UP)  # wide
    other = tanh(wide)  # other
    miss = only_miss(graph_of(gated(wide), other))
    assert miss.reason == f"the whole result is read by tanh at {line_of('other', __file__)} too"
    assert (miss.loc, miss.at) == (line_of("wide", __file__),) * 2
    assert only_miss(graph_of(gated(wide), wide)).reason == "the whole result is an output too"


def test_more_pieces_than_an_epilogue_takes() -> None:
    first, second, third = split(linear(X, GATE_UP), sizes=(4, 4, 4))  # three
    graph = graph_of(silu(first) * second + third)
    miss = only_miss(graph)
    assert miss.reason == "3 pieces meet, but an epilogue takes 2"
    assert miss.loc == line_of("three", __file__)
    assert apply_rules(graph, [SplitLinear(meeting=3)])[1]


APART: dict[str, Callable[[], tuple[Value, ...]]] = {
    "pieces of their own": lambda: tuple(map(tanh, split(linear(X, GATE_UP), sizes=(6, 6)))),
    "heads": lambda: tuple(reshape(p, shape=(TOKENS, 2, 3))
                           for p in split(linear(X, GATE_UP), sizes=(6, 6))),
    "nothing cut": lambda: (tanh(linear(X, GATE_UP)),),
    "cut along another axis": lambda: (slice(linear(leaf("r", 4, 8), GATE_UP), axis=0, start=0,
                                             size=2),),
    "one piece": lambda: (silu(linear(X, GATE_UP)[..., :6]),),
}


@pytest.mark.parametrize("way", APART)
def test_what_does_not_meet_is_no_near_miss(way: str) -> None:
    assert misses(graph_of(*APART[way]())) == []


class WrongSplit(SplitLinear):
    """Takes the rows of the weight from its start on for every piece."""

    def made(self, operands: Any, spans: Any) -> list[Value]:
        return super().made(operands, [(0, size) for _, size in spans])


@pytest.mark.parametrize("op", [linear, matmul_nt], ids=lambda op: op.name)
def test_proves_itself(op: Any) -> None:
    self_check(SplitLinear(op), 0)
    with pytest.raises(AssertionError):
        self_check(WrongSplit(op), 0)


def test_targets_choose() -> None:
    assert [r for r in groups(CPU) if isinstance(r, SplitLinear)]
    assert not [r for r in groups(SINGLE) if isinstance(r, SplitLinear)]
    assert not [r for r in groups(WHOLE) if isinstance(r, SplitLinear)]
