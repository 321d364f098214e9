"""Pointwise work that follows an attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from passcase import CPU, assert_same, graph_of, leaf, line_of, names

from graphdsl.ir import Dim, Graph, Value
from graphdsl.ops import attention, cast, linear, merge_heads, rms_norm, sigmoid, split_heads
from graphdsl.passes.base import Missed
from graphdsl.passes.pipeline import Lowered, run_pipeline
from graphdsl.printer import text

BATCH, TOKENS = Dim("batch"), Dim("tokens")


def attended(dtype: str = "f32") -> Value:
    q = leaf("q", BATCH, TOKENS, 2, 4, dtype=dtype)
    k, v = (leaf(n, BATCH, TOKENS, 1, 4, dtype=dtype) for n in "kv")
    y: Value = attention(q, k, v)  # attention
    return y


def gated(dtype: str = "f32") -> Graph:
    """A gate on merged heads, as models with gated attention have it."""
    gate = leaf("gate", BATCH, TOKENS, 8, dtype=dtype)
    w = leaf("w", 8, 8, dtype=dtype, kind="param")
    return graph_of(linear(merge_heads(attended(dtype)) * sigmoid(gate), w))


def lowered_of(graph: Graph) -> Lowered:
    lowered = run_pipeline(graph, CPU, verify=True)
    assert_same(graph, lowered, seed=1)
    return lowered


def misses(lowered: Lowered) -> list[Missed]:
    return [m for report in lowered.report for m in report.missed
            if m.rule == "AttentionEpilogue"]


def test_golden(golden: Callable[[str, str], None]) -> None:
    lowered = lowered_of(gated("bf16"))
    golden("passes/attention_epilogue.txt", text(lowered.graph, locations=False))
    assert not misses(lowered)


def scaled_by_head(y: Value) -> Value:
    return merge_heads(y) * leaf("scale", 8, kind="param") * leaf("row", BATCH, TOKENS, 1)


@pytest.mark.parametrize("make", [
    lambda y: cast(y * 2.0, dtype="bf16"), lambda y: y * leaf("g", BATCH, TOKENS, 2, 4),
    lambda y: y * leaf("g", 2, 1), scaled_by_head, lambda y: merge_heads(y * y + y) - 1.0],
    ids=["cast", "gate", "heads", "vectors", "of itself"])
def test_what_is_taken_in(make: Callable[[Value], Value]) -> None:
    lowered = lowered_of(graph_of(make(attended())))
    assert names(lowered.graph).count("attention_epilogue") == 1
    assert "loop" not in names(lowered.graph)


def test_a_target_that_has_none() -> None:
    lowered = run_pipeline(gated(), replace(CPU, fuses_attention=False), verify=True)
    assert "attention" in names(lowered.graph)
    assert not misses(lowered)


@pytest.mark.parametrize(("make", "reason"), [
    (lambda y: (y * 2.0, y), "the attention's result is read elsewhere too"),
    (lambda y: (y * 2.0, y * 3.0), "what follows is read elsewhere too"),
    (lambda y: (rms_norm(merge_heads(y) * 2.0, leaf("n", 8, kind="param"), eps=1e-5),),
     "a loop reads the result and does this work as well"),
    (lambda y: (y * merge(linear(merge_heads(y), leaf("w", 8, 8, kind="param"))),),
     "an operand is made later than the attention")])
def test_refusals(make: Callable[[Value], tuple[Value, ...]], reason: str) -> None:
    lowered = lowered_of(graph_of(*make(attended())))
    assert "attention_epilogue" not in names(lowered.graph)
    missed, = misses(lowered)
    assert missed.reason == reason
    assert missed.loc == line_of("attention", __file__)


def merge(x: Value) -> Value:
    """Back in heads."""
    y: Value = split_heads(x, 2)
    return y
