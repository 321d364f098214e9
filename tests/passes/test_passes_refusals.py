"""Why a rule does not fire: the reason, and the line of the value that is to blame."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from passcase import CPU, WHOLE, assert_same, graph_of, leaf, line_of
from random_layers import DecoderModel, ModelShape, Shape

from graphdsl.errors import GraphError
from graphdsl.ir import Dim, Graph, Layout, TensorType, Value
from graphdsl.layer import BATCH, SLOTS, Model, Param, trace
from graphdsl.ops.activation import silu
from graphdsl.ops.attention import attention
from graphdsl.ops.kv import kv_append
from graphdsl.ops.linear import linear, matmul_nt
from graphdsl.ops.math import tanh
from graphdsl.ops.norm import add_rms_norm, rms_norm
from graphdsl.ops.position import rope
from graphdsl.ops.shape import reshape
from graphdsl.passes.activation import SiluMul
from graphdsl.passes.base import Missed
from graphdsl.passes.engine import apply_rules
from graphdsl.passes.linear import MergeLinears
from graphdsl.passes.memory import ordered
from graphdsl.passes.norm import AddRMSNorm
from graphdsl.passes.pipeline import run_pipeline
from graphdsl.passes.position import RopeAppend

TOKENS = Dim("tokens")
X, R, A, B = (leaf(n, TOKENS, 8) for n in "xrab")
W = leaf("w", 8, kind="param")
WQ, WK = leaf("wq", 16, 8, kind="param"), leaf("wk", 4, 8, kind="param")


def only_miss(graph: Graph, rule: Any) -> Missed:
    """The single near miss of a rule that does not fire."""
    _, fired, missed = apply_rules(graph, [rule])
    assert not fired
    assert len(missed) == 1
    return missed[0]


def test_inner_value_has_another_user() -> None:
    act = silu(A)  # act
    other = tanh(act)  # other
    miss = only_miss(graph_of(act * B, other), SiluMul())
    assert miss.at == line_of("act", __file__)
    assert miss.reason == f"the result of silu is read by tanh at {line_of('other', __file__)} too"


def test_inner_value_is_an_output() -> None:
    act = silu(A)  # output
    miss = only_miss(graph_of(act * B, act), SiluMul())
    assert miss.reason == "the result of silu is an output too"
    assert miss.at == line_of("output", __file__)


def test_cycle() -> None:
    total = X + R  # total
    miss = only_miss(graph_of(rms_norm(A, reshape(add_rms_norm(total, total, W, eps=1.0)[1][0:1],
                                                  shape=(8,)), eps=1e-5)), AddRMSNorm())
    assert "wanted one made by add" in miss.reason
    weight = reshape(tanh(total)[0:1], shape=(8,))  # weight
    miss = only_miss(graph_of(rms_norm(total, weight, eps=1e-5)), AddRMSNorm())
    assert miss.reason == "fusing would make a cycle"


def test_operand_is_made_by_something_else() -> None:
    product = X * R  # product
    miss = only_miss(graph_of(rms_norm(product, W, eps=1e-5)), AddRMSNorm())
    assert miss.reason == "an operand is made by mul, wanted one made by add"
    assert miss.at == line_of("product", __file__)


def test_after_does_not_fit() -> None:
    total = X + leaf("row", 8)
    normed = rms_norm(total, W, eps=1e-5)  # broadcast
    miss = only_miss(graph_of(normed), AddRMSNorm())
    assert miss.reason.startswith("what it would make does not fit: add_rms_norm: r is f32[8]")
    assert miss.loc == line_of("broadcast", __file__)


def test_after_makes_another_type() -> None:
    class Narrow(AddRMSNorm):
        @staticmethod
        def after(x: Value, r: Value, w: Value, *, eps: float) -> Any:
            normed, total = add_rms_norm(x, r, w, eps=eps)
            return normed[:, :4], total

    miss = only_miss(graph_of(rms_norm(X + R, W, eps=1e-5)), Narrow())
    assert miss.reason == "it would make f32[tokens, 4] of f32[tokens, 8]"


def test_weight_is_not_a_param() -> None:
    weight = reshape(tanh(leaf("k", 8, 4)), shape=(4, 8))  # computed
    miss = only_miss(graph_of(linear(X, WQ), linear(X, weight)), MergeLinears())
    assert miss.reason == "the weight f32[4, 8] is not a Param"
    assert miss.at == line_of("computed", __file__)


def test_left_for_an_epilogue() -> None:
    up = leaf("up", 16, 8, kind="param")
    gated = silu(linear(X, WQ)) * linear(X, up)
    _, fired, missed = apply_rules(graph_of(gated), [MergeLinears(meeting=2)])
    assert not fired
    assert {m.reason for m in missed} == {
        "it is left for an epilogue, where it meets its sibling"}
    assert apply_rules(graph_of(gated), [MergeLinears(meeting=1)])[1]


def test_attribute_differs() -> None:
    """rope on q and k in two ways."""
    q, k, v = (leaf(n, BATCH, TOKENS, 2, 4) for n in "qkv")
    cos, sin = leaf("cos", BATCH, TOKENS, 2), leaf("sin", BATCH, TOKENS, 2)
    positions = leaf("positions", BATCH, TOKENS, dtype="i32")
    old = [Value(TensorType((BATCH, SLOTS, 2, 4), "f32", Layout()), name=n, kind="state")
           for n in ("kv.k", "kv.v")]
    turned = rope(k, cos, sin, interleaved=True)  # turned
    new = kv_append(old[0], turned, positions), kv_append(old[1], v, positions)
    graph = graph_of(attention(rope(q, cos, sin), *new, positions), *new, state=tuple(old))
    miss = only_miss(graph, RopeAppend())
    assert miss.reason == "interleaved of rope is True, wanted False"
    assert miss.at == line_of("turned", __file__)


def test_expanded_operation_is_not_made_again() -> None:
    lowered = run_pipeline(graph_of(*add_rms_norm(X, R, W, eps=1e-5)), CPU)
    assert not [f for report in lowered.report for f in report.fired if f.rule == "AddRMSNorm"]


def test_ordinary_pointwise_nodes_are_no_near_misses() -> None:
    assert apply_rules(graph_of(X * R, X + R), [SiluMul(), AddRMSNorm()])[1:] == ((), ())


def test_two_norms_that_differ_in_eps() -> None:
    first = rms_norm(X, W, eps=1e-5)  # first
    second = rms_norm(X, W, eps=1e-3)  # second
    graph = graph_of(linear(first, WQ), linear(second, WK))
    missed = [m for r in run_pipeline(graph, CPU).report for m in r.missed]
    miss = next(m for m in missed if m.rule == "CommonSubexpression")
    assert miss.reason == "eps of rms_norm is 0.001, that of the other rms_norm of this value is " \
                          "1e-05"
    assert (miss.loc, miss.at) == (line_of("second", __file__), line_of("first", __file__))


SHAPE = Shape(hidden=16, heads=2, kv_heads=2, head_dim=4, ffn=8)


def roll_misses(*layers: Shape) -> list[Missed]:
    graph = trace(DecoderModel(ModelShape(layers, 7)))
    lowered = run_pipeline(graph, CPU)
    assert_same(graph, lowered)
    return [m for report in lowered.report for m in report.missed if m.rule == "Roll"]


def test_layers_with_another_eps_are_not_rolled() -> None:
    misses = roll_misses(SHAPE, SHAPE, replace(SHAPE, eps=1e-3))
    assert misses[0].scope == "layers.2"
    assert misses[0].reason == "it differs from layers.1: eps of rms_norm is 0.001, not 1e-05"
    assert misses[0].at is not None
    assert misses[0].at.file.endswith("random_layers.py")


def test_layers_of_another_size_are_not_rolled() -> None:
    reason = roll_misses(SHAPE, replace(SHAPE, ffn=12))[0].reason
    assert reason == "it differs from layers.0: up is f32[12, 16], not f32[8, 16]"


class Hidden(Model):
    """Returns what its first Layer made, too."""

    signature = "x[batch, tokens, 16], positions[batch, tokens]:i32 -> y[batch, tokens, 16]" \
                ", first[batch, tokens, 16]"

    def __init__(self) -> None:
        self.layers = DecoderModel(ModelShape((SHAPE, SHAPE), 7)).layers

    def forward(self, x: Value, positions: Value) -> tuple[Value, Value]:
        first = self.layers[0](x, positions)
        return self.layers[1](first, positions), first


def test_hidden_state_that_is_returned() -> None:
    lowered = run_pipeline(trace(Hidden()), CPU)
    assert "repeat" not in [n.name for n in lowered.graph.nodes]
    misses = [m for report in lowered.report for m in report.missed if m.rule == "Roll"]
    assert misses[0].reason == (
        "what the layer before it returns is read as an output too")


class OldState(Model):
    """Reads the cache that it has overwritten."""

    signature = "q[batch, tokens, 2, 4], positions[batch, tokens]:i32 -> y[batch, tokens, 2, 4]"

    def __init__(self, late: bool) -> None:
        from graphdsl.layer import KVCache

        self.kv, self.late, self.w = KVCache(2, 4), late, Param(4, 4)

    def forward(self, q: Value, positions: Value) -> Value:
        old = self.kv
        if not self.late:
            q = attention(q, old.k, old.v, positions)
        new = old.append(q, q, positions)  # append
        seen = attention(q, new.k, new.v, positions)
        if self.late:
            seen = attention(matmul_nt(seen, self.w), old.k, new.v, positions)  # late
        return seen


@pytest.mark.parametrize("target", [CPU, WHOLE], ids=lambda t: t.name)
def test_old_state_read_too_late(target: Any) -> None:
    with pytest.raises(GraphError, match=r"old value of kv\.k is read later") as caught:
        run_pipeline(trace(OldState(late=True)), target)
    assert caught.value.loc == line_of("append", __file__)
    assert f"at {line_of('late', __file__)} (attention)" in caught.value.message
    assert caught.value.hint == "use the value that kv_append returns"


def test_old_state_read_before_is_ordered() -> None:
    graph = trace(OldState(late=False))
    assert_same(graph, run_pipeline(graph, CPU))


def test_old_state_as_output() -> None:
    kv = Value(TensorType((BATCH, SLOTS, 2, 4), "f32", Layout()), name="kv", kind="state")
    x, positions = leaf("x", BATCH, TOKENS, 2, 4), leaf("positions", BATCH, TOKENS, dtype="i32")
    whole = reshape(kv, shape=(BATCH, SLOTS, 8))
    with pytest.raises(GraphError, match="old value of kv is read later as an output"):
        run_pipeline(graph_of(whole, kv_append(kv, x, positions), state=(kv,)), CPU)


def test_a_copy_of_the_old_state_is_made_in_time() -> None:
    kv = Value(TensorType((BATCH, SLOTS, 2, 4), "f32", Layout()), name="kv", kind="state")
    x, positions = leaf("x", BATCH, TOKENS, 2, 4), leaf("positions", BATCH, TOKENS, dtype="i32")
    graph = graph_of(kv, kv_append(kv, x, positions), state=(kv,))
    lowered = run_pipeline(graph, CPU)
    assert [n.name for n in ordered(lowered.graph)] == ["relayout", "kv_append"]
    assert_same(graph, lowered)


def test_param_is_not_overwritten() -> None:
    kv = leaf("kv", 2, 8, 2, 4, kind="param")
    x, positions = leaf("x", 2, 3, 2, 4), leaf("positions", 2, 3, dtype="i32")
    with pytest.raises(GraphError, match="would overwrite the param kv"):
        run_pipeline(graph_of(kv_append(kv, x, positions)), CPU)


@pytest.mark.parametrize(("options", "message", "hint"), [
    ({"loop": {}}, "no pass loop", "loops"),
    ({"roll": {"turns": "2"}}, "pass roll has no option turns", "min_turns"),
    ({"roll": {"min_turns": "two"}}, "'two' is not a whole number", "the default is 2"),
    ({"kv_layout": {"order": "dnsb"}}, "'dnsb' is not a choice", "bsnd, bnsd, sbnd"),
    ({"kv_layout": {"policy": "ring"}}, "'ring' is not a choice", "contiguous, paged, shift"),
    ({"kv_layout": {"storage": "int4"}}, "'int4' is not a choice", "int8, nz"),
    ({"kv_layout": {"policy": "paged", "block": "many"}}, "'many' is not a whole", "is 16"),
    ({"kv_layout": {"policy": "paged", "block": "--5"}}, "'--5' is not a whole", "is 16"),
    ({"kv_layout": {"policy": "paged", "block": "\u00b2"}}, "is not a whole number", "is 16"),
    ({"loops": {"x": "1"}}, "pass loops has no option x", "none")])
def test_unknown_options(options: Any, message: str, hint: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        run_pipeline(graph_of(X + R), CPU, options)
    assert hint in caught.value.hint
