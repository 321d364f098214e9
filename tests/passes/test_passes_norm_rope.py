"""Norms of the heads of q and k, and the operation that they become a part of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from passcase import CPU, graph_of, leaf, line_of, names, self_check

from graphdsl.ir import Dim, Graph, Layout, TensorType, Value
from graphdsl.layer import BATCH, SLOTS
from graphdsl.ops import attention, cast, kv_append, rms_norm, rope
from graphdsl.passes.base import Missed
from graphdsl.passes.norm_rope import NormRopeAppend
from graphdsl.passes.pipeline import Lowered, run_pipeline
from graphdsl.printer import text

TOKENS = Dim("tokens")


def state(name: str, dtype: str) -> Value:
    kind = TensorType((BATCH, SLOTS, 2, 4), dtype, Layout())
    return Value(kind, name=name, kind="state")


def heads_graph(dtype: str = "f32", eps: float = 1e-6, normed: str = "qk",
                wide: bool = False) -> Graph:
    """Attention of q, k and v whose heads of `normed` are normed, k with another eps if told."""
    q, k, v = (leaf(n, BATCH, TOKENS, 2 * (1 + (n == "q")), 4, dtype=dtype) for n in "qkv")
    cos, sin = (leaf(n, BATCH, TOKENS, 2) for n in ("cos", "sin"))
    positions = leaf("positions", BATCH, TOKENS, dtype="i32")
    wq, wk = (leaf(n, 4, dtype=dtype, kind="param") for n in ("q_norm", "k_norm"))
    if wide:
        wq, wk = (1.0 + cast(w, dtype="f32") for w in (wq, wk))
    if "q" in normed:
        q = rms_norm(q, wq, eps=1e-6)
    if "k" in normed:
        k = rms_norm(k, wk, eps=eps)  # k
    old = state("kv.k", dtype), state("kv.v", dtype)
    new_k = kv_append(old[0], rope(k, cos, sin), positions)
    new_v = kv_append(old[1], v, positions)
    out = attention(rope(q, cos, sin), new_k, new_v, positions)
    return graph_of(out, new_k, new_v, state=old)


def misses(lowered: Lowered) -> list[Missed]:
    return [m for report in lowered.report for m in report.missed if m.rule == "NormRopeAppend"]


@pytest.mark.parametrize("seed", range(2))
def test_the_rule_alone(seed: int) -> None:
    self_check(NormRopeAppend(), seed)


@pytest.mark.parametrize("wide", [False, True], ids=["own", "one plus w"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_it_grows_out_of_rope_append(dtype: str, wide: bool) -> None:
    lowered = run_pipeline(heads_graph(dtype, wide=wide), CPU, verify=True)
    assert names(lowered.graph) == ["norm_rope_append", "attention"]
    assert not misses(lowered)


def test_a_target_without_it_opens_it() -> None:
    lowered = run_pipeline(heads_graph(), replace(CPU, takes=frozenset({"rope_append"})),
                           verify=True)
    assert names(lowered.graph) == ["loop", "loop", "rope_append", "attention"]
    assert not misses(lowered)


def test_refused_where_eps_differs() -> None:
    lowered = run_pipeline(heads_graph(eps=1e-3), CPU, verify=True)
    assert "rope_append" in names(lowered.graph)
    missed, = misses(lowered)
    assert missed.reason == "eps of rms_norm is 0.001, wanted 1e-06"
    assert missed.at == line_of("k", __file__)


def test_refused_where_one_is_not_normed() -> None:
    lowered = run_pipeline(heads_graph(normed="q"), CPU, verify=True)
    missed, = misses(lowered)
    assert missed.reason == "an operand is the input k, wanted one made by rms_norm"
    assert not misses(run_pipeline(heads_graph(normed=""), CPU))


def test_golden(golden: Callable[[str, str], None]) -> None:
    before = heads_graph("bf16")
    lowered = run_pipeline(before, CPU, verify=True)
    golden("passes/norm_rope_append.txt", "\n\n".join([
        text(before, locations=False), text(lowered.graph, locations=False)]))
