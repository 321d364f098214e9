"""Sizes, views and the planner: what is a view, what is copied, who waits for whom."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from graphdsl.call_plan import Call, CallPlan, make_plan
from graphdsl.expr import ONE, Poly, dense_strides, product
from graphdsl.ir import Dim, Graph, Layout, Node, TensorType, Value
from graphdsl.layer import Layer, Param, trace
from graphdsl.ops import concat, linear, reshape, rms_norm, silu, split, transpose
from graphdsl.views import Ref, collapsed_rows, leaf_ref, reshaped_strides

B, T = Dim("b"), Dim("t")


def test_polynomials_are_equal_when_they_mean_the_same() -> None:
    assert Poly.of(T + 3) * 2 == Poly.of(2 * T + 6)
    assert Poly.of(B) * T == Poly.of(T) * B
    assert (Poly.of(T) + 1) * (Poly.of(T) + 1) == Poly.of(T) * T + 2 * T + 1
    assert str(product([B, T, 64])) == "64 * b_ * t_"
    assert str(Poly.of(T + 1) * B) == "(b_ + b_ * t_)"
    assert (Poly.of(B) * T * 6).value({"b": 2, "t": 5}) == 60


def test_exact_quotients() -> None:
    assert product([B, T, 64]).divided_by(Poly.of(T) * 4) == Poly.of(B) * 16
    assert Poly.of(64).divided_by(Poly.of(T)) is None
    assert Poly.of(10).divided_by(Poly.of(4)) is None
    assert Poly.of(T + 1).divided_by(Poly.of(T + 1)) == ONE


def strided(shape: Sequence[Any], strides: Sequence[int]) -> Ref:
    return Ref("p", "f32", tuple(shape), tuple(Poly.of(s) for s in strides))


@pytest.mark.parametrize("seed", range(200))
def test_reshape_is_a_view_exactly_when_torch_says_so(seed: int) -> None:
    rng = random.Random(seed)
    shape = [rng.choice([1, 2, 3, 4]) for _ in range(rng.randint(1, 4))]
    order = rng.sample(range(len(shape)), len(shape))
    x = torch.empty(shape).permute(order)
    if rng.random() < 0.5 and x.dim() > 1:
        x = x[..., : max(1, x.shape[-1] - 1)]
    flat = [f for size in x.shape for f in ((2, 2) if size == 4 else (size,))]
    target: list[int] = []
    for factor in flat:
        if target and rng.random() < 0.5:
            target[-1] *= factor
        else:
            target.append(factor)
    try:
        wanted: Any = x.view(target)
    except RuntimeError:
        wanted = None
    found = reshaped_strides(strided(x.shape, x.stride()), target)
    assert (found is None) == (wanted is None)
    if found is not None:
        pairs = zip(found, wanted.stride(), target, strict=True)
        assert all(a.number == b for a, b, size in pairs if size != 1)


def test_symbolic_heads_are_split_and_merged_without_a_copy() -> None:
    ref = leaf_ref("p", TensorType((B, T, 96), "f32"))
    split_up = reshaped_strides(ref, (B, T, 6, 16))
    assert split_up == (Poly.of(T) * 96, Poly.of(96), Poly.of(16), ONE)
    assert reshaped_strides(Ref("p", "f32", (B, T, 6, 16), split_up), (B, T, 96)) == ref.strides


def test_strides_of_a_cache_follow_its_layout() -> None:
    ref = leaf_ref("p", TensorType((B, T, 2, 16), "f32", Layout("bnsd")))
    assert ref.strides == (Poly.of(T) * 32, Poly.of(16), Poly.of(T) * 16, ONE)


def test_rows_are_merged_where_every_operand_steps_evenly() -> None:
    dense = dense_strides((B, T, 6, 16))
    sizes, (strides,) = collapsed_rows((B, T, 6), [dense[:-1]])
    assert (sizes, strides) == ((Poly.of(B) * T * 6,), (Poly.of(16),))
    per_token = (Poly.of(T), ONE, Poly.of(0))
    sizes, _ = collapsed_rows((B, T, 6), [dense[:-1], per_token])
    assert sizes == (Poly.of(B) * T, Poly.of(6))


class Plain:
    """A lowering that takes everything where it lies."""

    def packed_inputs(self, node: Node) -> tuple[int, ...]:
        return (1,) if node.name == "matmul_nt" else ()

    def needs_copy(self, node: Node, index: int, ref: Ref) -> bool:
        return not ref.unit_columns

    def can_write(self, node: Node, ref: Ref) -> bool:
        return ref.unit_columns

    def scratch(self, node: Node, inputs: Sequence[Ref], outputs: Sequence[Ref]) -> str:
        return ""


def plan_of(graph: Graph) -> tuple[CallPlan, list[Call]]:
    plan = make_plan(graph, {}, Plain())
    calls = [c for c in plan.bodies[0].calls if isinstance(c, Call)]
    return plan, calls


class Rows(Layer):
    signature = "x[batch, tokens, 8] -> y[batch, tokens, 8]"

    def __init__(self, maths: Any) -> None:
        self.maths = maths
        self.w = Param(8, 8)

    def forward(self, x: Value) -> Any:
        return self.maths(self, x)


def test_concat_is_written_in_place_and_the_result_too() -> None:
    graph = trace(Rows(lambda p, x: concat(silu(x[..., :4]), silu(x[..., 4:]), axis=2)))
    plan, calls = plan_of(graph)
    assert [c.op for c in calls] == ["silu", "silu"]
    assert [str(c.outputs[0].offset) for c in calls] == ["0", "4"]
    assert not calls[1].barrier or calls[1].outputs[0].base == calls[0].outputs[0].base
    assert not plan.buffers


def test_concat_copies_what_nobody_makes_for_it() -> None:
    graph = trace(Rows(lambda p, x: concat(x[..., 4:], x[..., :4], axis=2)))
    assert [c.op for c in plan_of(graph)[1]] == ["copy", "copy"]


def test_views_cost_nothing() -> None:
    def halves(p: Any, x: Value) -> Value:
        a, b = split(reshape(x, shape=(*x.shape[:2], 2, 4)), sizes=(1, 1), axis=2)
        return concat(reshape(silu(b), shape=(*x.shape[:2], 4)),
                      reshape(silu(a), shape=(*x.shape[:2], 4)), axis=2)

    assert [c.op for c in plan_of(trace(Rows(halves)))[1]] == ["silu", "silu"]


def test_a_transposed_last_axis_is_copied_for_kernels_that_need_rows() -> None:
    def turned(p: Any, x: Value) -> Value:
        y = transpose(reshape(x, shape=(*x.shape[:2], 2, 4)), order=(0, 1, 3, 2))
        return reshape(transpose(silu(y), order=(0, 1, 3, 2)), shape=x.shape)

    assert [c.op for c in plan_of(trace(Rows(turned)))[1]] == ["copy", "silu", "copy"]


def test_independent_calls_do_not_wait_for_each_other() -> None:
    def diamond(p: Any, x: Value) -> Value:
        return linear(silu(x), p.w) + rms_norm(x, p.w[0], eps=1e-5)

    _, calls = plan_of(trace(Rows(diamond)))
    waiting = {c.op: c.barrier for c in calls}
    assert not waiting["rms_norm"] or not waiting["silu"]
    assert waiting["add"]


def test_buffers_of_calls_without_a_barrier_between_them_live_at_once() -> None:
    graph = trace(Rows(lambda p, x: silu(silu(x)) + silu(x * x)))
    plan, _ = plan_of(graph)
    for i, a in enumerate(plan.buffers):
        assert 0 <= a.start <= a.end, i


def test_a_param_read_packed_and_plainly_gets_two_ports() -> None:
    graph = trace(Rows(lambda p, x: linear(x, p.w) + x * p.w[0]))
    opened = Graph(graph.name, graph.inputs, graph.params, graph.state, graph.outputs)
    from graphdsl.passes.rewrite import inline

    opened = inline(opened, lambda n: n.op.is_operation)
    plan, _ = plan_of(opened)
    ports = [(p.name, p.packed) for p in plan.ports if p.kind == "param"]
    assert ports == [("w", True), ("w", False)]
