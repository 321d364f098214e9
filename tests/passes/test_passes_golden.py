"""Every rule and pass on the smallest graph that shows its point, as text before and after."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from passcase import CPU, PLAIN, WHOLE, graph_of, leaf
from random_layers import DecoderLayer, DecoderModel, ModelShape, Shape

from graphdsl.ir import Dim, Graph, Layout, TensorType, Value
from graphdsl.layer import BATCH, SLOTS, trace
from graphdsl.ops.activation import gelu, silu
from graphdsl.ops.attention import attention
from graphdsl.ops.kv import kv_append
from graphdsl.ops.linear import linear
from graphdsl.ops.math import cast, tanh
from graphdsl.ops.norm import rms_norm, softmax
from graphdsl.ops.position import rope
from graphdsl.ops.shape import concat, reshape, split, transpose
from graphdsl.passes.base import Target
from graphdsl.passes.pipeline import run_pipeline
from graphdsl.printer import text

Golden = Callable[[str, str], None]
TOKENS = Dim("tokens")


def add_rms_norm_graph() -> Graph:
    x, r, w = leaf("x", TOKENS, 8), leaf("r", TOKENS, 8), leaf("w", 8, kind="param")
    total = r + x
    return graph_of(rms_norm(total, w, eps=1e-5), total)


def silu_mul_graph() -> Graph:
    a, b = leaf("a", TOKENS, 8), leaf("b", TOKENS, 8)
    return graph_of(b * silu(a))


def gelu_mul_graph() -> Graph:
    a, b = leaf("a", TOKENS, 8), leaf("b", TOKENS, 8)
    return graph_of(gelu(a) * b)


def merge_graph() -> Graph:
    x = leaf("x", TOKENS, 8)
    weights = [leaf(f"w{n}", s, 8, kind="param") for n, s in zip("qkv", (16, 4, 4), strict=True)]
    biases = [leaf(f"b{n}", s, kind="param") for n, s in zip("qkv", (16, 4, 4), strict=True)]
    return graph_of(*(linear(x, w, b) for w, b in zip(weights, biases, strict=True)))


def gate_up_graph() -> Graph:
    x = leaf("x", TOKENS, 8)
    gate, up, other = (leaf(n, 16, 8, kind="param") for n in ("gate", "up", "other"))
    return graph_of(silu(linear(x, gate)) * linear(x, up), linear(x, other))


def state(name: str) -> Value:
    return Value(TensorType((BATCH, SLOTS, 2, 4), "f32", Layout()), name=name, kind="state")


def rope_append_graph() -> Graph:
    q, k, v = (leaf(n, BATCH, TOKENS, 2, 4) for n in "qkv")
    cos, sin = leaf("cos", BATCH, TOKENS, 2), leaf("sin", BATCH, TOKENS, 2)
    positions = leaf("positions", BATCH, TOKENS, dtype="i32")
    old = state("kv.k"), state("kv.v")
    new_k = kv_append(old[0], rope(k, cos, sin), positions)
    new_v = kv_append(old[1], v, positions)
    out = attention(rope(q, cos, sin), new_k, new_v, positions)
    return graph_of(out, new_k, new_v, state=old)


def residual_graph() -> Graph:
    """The sum is made in the epilogue, the norm that follows is a loop."""
    x, o = leaf("x", TOKENS, 8, dtype="bf16"), leaf("o", TOKENS, 16, dtype="bf16")
    w, norm = leaf("w", 8, 16, dtype="bf16", kind="param"), leaf("n", 8, dtype="bf16", kind="param")
    total = x + linear(o, w)
    return graph_of(rms_norm(total, norm, eps=1e-5), total)


def norm_gate_graph() -> Graph:
    """The norm is the prologue of gate and up, which have an epilogue."""
    x, norm = leaf("x", TOKENS, 8), leaf("n", 8, kind="param")
    gate, up = (leaf(n, 16, 8, kind="param") for n in ("gate", "up"))
    normed = rms_norm(x, norm, eps=1e-5)
    return graph_of(silu(linear(normed, gate)) * linear(normed, up))


def softmax_graph() -> Graph:
    return graph_of(softmax(tanh(leaf("x", TOKENS, 8))))


def cleanup_graph() -> Graph:
    """All of it is one tanh."""
    x = leaf("x", TOKENS, 8)
    first, second = split(x * 1.0 + 0.0, sizes=(4, 4), axis=-1)
    whole = transpose(transpose(concat(first, second, axis=1), order=(1, 0)), order=(1, 0))
    flat = reshape(reshape(whole, shape=(TOKENS, 2, 4)), shape=(TOKENS, 8))
    return graph_of(tanh(cast(flat, dtype="f32")), tanh(x))


def fold_graph() -> Graph:
    x, w, g = leaf("x", TOKENS, 8), leaf("w", 16, 8, kind="param"), leaf("g", 8, kind="param")
    return graph_of(linear(x, (w * tanh(g))[:8]), linear(x, w))


CASES: dict[str, tuple[Callable[[], Graph], Target]] = {
    "add_rms_norm": (add_rms_norm_graph, WHOLE), "silu_mul": (silu_mul_graph, WHOLE),
    "gelu_mul": (gelu_mul_graph, WHOLE), "merge_linears": (merge_graph, WHOLE),
    "merge_linears_cpu": (merge_graph, CPU), "gate_up": (gate_up_graph, CPU),
    "rope_append": (rope_append_graph, CPU), "residual_norm": (residual_graph, CPU),
    "norm_gate": (norm_gate_graph, CPU), "softmax_loop": (softmax_graph, CPU),
    "softmax_plain": (softmax_graph, PLAIN),
    "cleanup": (cleanup_graph, CPU), "fold": (fold_graph, CPU)}


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, golden: Golden) -> None:
    make, target = CASES[case]
    before = make()
    lowered = run_pipeline(before, target, verify=True)
    fired = dict.fromkeys(f.rule for report in lowered.report for f in report.fired)
    recipes = [text(r, locations=False) for r in lowered.recipes.values()]
    golden(f"passes/{case}.txt", "\n\n".join([
        text(before, locations=False), f"fired: {', '.join(fired)}",
        text(lowered.graph, locations=False), *recipes]))


LAYER = Shape(hidden=16, heads=4, kv_heads=2, head_dim=4, ffn=24)


def test_golden_layer(golden: Golden) -> None:
    """A whole Llama layer in bf16, with the scope and the rules of every node."""
    lowered = run_pipeline(trace(DecoderLayer(LAYER), "bf16"), CPU, verify=True)
    printed = text(lowered.graph).replace("random_layers.py:", "L")
    golden("passes/llama_layer.txt", "\n".join(_without_lines(printed)))


def test_golden_model(golden: Golden) -> None:
    """Three equal Layers are a repeat; angles are made once, merged weights are folded."""
    graph = trace(DecoderModel(ModelShape((LAYER,) * 3, 10)), "f32")
    lowered = run_pipeline(graph, CPU, verify=True)
    printed = text(lowered.graph).replace("random_layers.py:", "L")
    golden("passes/llama_model.txt", "\n".join(_without_lines(printed)))


def _without_lines(printed: str) -> list[str]:
    """Line numbers of the generator do not belong into a golden text."""
    return [" ".join(word for word in line.split(" ") if not word[:2].strip("L").isdigit()
                     or not word.startswith("L")) for line in printed.splitlines()]
