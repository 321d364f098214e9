"""Rules that fuse appends, and readers of what is overwritten."""

from __future__ import annotations

from passcase import CPU, assert_same, graph_of, leaf, line_of

from graphdsl.ir import Dim, Graph, Layout, TensorType, Value
from graphdsl.layer import BATCH, SLOTS
from graphdsl.ops import attention, kv_append, rope, tanh
from graphdsl.passes.pipeline import run_pipeline

TOKENS = Dim("tokens")


def state(name: str) -> Value:
    return Value(TensorType((BATCH, SLOTS, 2, 4), "f32", Layout()), name=name, kind="state")


def old_values_graph(of_new_keys: bool, by_view: bool) -> Graph:
    """Something else reads the values as they were before the append: with the new keys, or with
    the old ones; as they are, or a head of them alone."""
    q, k, v = (leaf(n, BATCH, TOKENS, 2, 4) for n in "qkv")
    cos, sin = leaf("cos", BATCH, TOKENS, 2), leaf("sin", BATCH, TOKENS, 2)
    positions = leaf("positions", BATCH, TOKENS, dtype="i32")
    old_k, old_v = state("kv.k"), state("kv.v")
    new_k = kv_append(old_k, rope(k, cos, sin), positions)
    keys = new_k if of_new_keys else old_k
    heads = (slice(None), slice(None), slice(0, 1)) if by_view else ()
    before = attention(q[heads], keys[heads], old_v[heads], positions)  # before
    new_v = kv_append(old_v, v, positions)
    after = attention(rope(q, cos, sin), new_k, new_v, positions)  # after
    return graph_of(tanh(before), after, new_k, new_v, state=(old_k, old_v))


def test_appends_that_a_reader_stands_between_stay_apart() -> None:
    """The reader needs the new keys and the old values: one call for both appends would have to
    come before it and after it."""
    for by_view in (False, True):
        graph = old_values_graph(of_new_keys=True, by_view=by_view)
        lowered = run_pipeline(graph, CPU, verify=True)
        assert_same(graph, lowered)
        assert "rope_append" not in [n.name for n in lowered.graph.nodes]
        cycles = [m for r in lowered.report for m in r.missed
                  if m.reason == "fusing would make a cycle"]
        assert cycles[0].loc == line_of("after", __file__)


def test_appends_after_a_reader_are_fused() -> None:
    for by_view in (False, True):
        graph = old_values_graph(of_new_keys=False, by_view=by_view)
        lowered = run_pipeline(graph, CPU, verify=True)
        assert_same(graph, lowered)
        assert "rope_append" in [n.name for n in lowered.graph.nodes]
