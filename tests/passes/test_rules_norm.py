"""Norms and softmax in all the ways in which they are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from passcase import CPU, assert_same, graph_of, leaf, names
from rulecase import EVERY, golden_text, made

from graphdsl.ir import Dim, Value
from graphdsl.op import operation
from graphdsl.ops.linear import linear
from graphdsl.ops.math import (
    as_dtype,
    cast,
    exp,
    mean,
    neg,
    pow,
    reduce_max,
    reduce_sum,
    rsqrt,
    sqrt,
)
from graphdsl.ops.norm import add_layer_norm, layer_norm, rms_norm, softmax
from graphdsl.ops.shape import reshape
from graphdsl.passes import norm
from graphdsl.passes import softmax as softmax_rules
from graphdsl.passes.pipeline import run_pipeline
from graphdsl.printer import text

Golden = Callable[[str, str], None]
BATCH, TOKENS = Dim("batch"), Dim("tokens")
EPS = 1e-5
RULES = [*norm.RULES, *softmax_rules.RULES]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_golden(rule: Any, golden: Golden) -> None:
    golden(f"passes/norm/{rule.name}.txt", golden_text(rule))


MEAN: dict[str, Callable[[Value], Value]] = {
    "mean": mean,
    "sum / n": lambda x: reduce_sum(x) / 8.0,
    "sum * (1/n)": lambda x: reduce_sum(x) * (1.0 / 8.0),
    "(1/n) * sum": lambda x: 0.125 * reduce_sum(x),
}

SQUARE: dict[str, Callable[[Value], Value]] = {
    "x * x": lambda x: x * x, "x ** 2": lambda x: pow(x, 2.0)}

SCALED: dict[str, Callable[[Value, Value], Value]] = {
    "x * rsqrt(v)": lambda x, v: x * rsqrt(v),
    "rsqrt(v) * x": lambda x, v: rsqrt(v) * x,
    "x * (1 / sqrt(v))": lambda x, v: x * (1.0 / sqrt(v)),
    "x / sqrt(v)": lambda x, v: x / sqrt(v),
    "x / v ** 0.5": lambda x, v: x / pow(v, 0.5),
    "x * v ** -0.5": lambda x, v: x * pow(v, -0.5),
}


def operands(dtype: str) -> tuple[Value, Value, Value]:
    """x, and a weight and a bias that are params."""
    w, b = (leaf(n, 8, dtype=dtype, kind="param") for n in "wb")
    return leaf("x", BATCH, TOKENS, 8, dtype=dtype), w, b


@pytest.mark.parametrize("scaled", SCALED)
@pytest.mark.parametrize("square", SQUARE)
@pytest.mark.parametrize("average", MEAN)
def test_rms_norm(average: str, square: str, scaled: str) -> None:
    x, w, _ = operands("f32")
    normed = SCALED[scaled](x, MEAN[average](SQUARE[square](x)) + EPS)
    assert made(graph_of(w * normed)) == ["rms_norm"]
    assert made(graph_of(normed * w)) == ["rms_norm"]


def llama(x: Value, w: Value) -> Value:
    """LlamaRMSNorm of transformers."""
    h = cast(x, dtype="f32")
    variance = mean(pow(h, 2.0))
    return w * cast(h * rsqrt(variance + EPS), dtype=x.dtype)


def gemma(x: Value, w: Value) -> Value:
    """Gemma3RMSNorm of transformers."""
    h = cast(x, dtype="f32")
    normed = h * rsqrt(mean(pow(cast(x, dtype="f32"), 2.0)) + EPS)
    return cast(normed * (1.0 + cast(w, dtype="f32")), dtype=x.dtype)


def chatglm(x: Value, w: Value) -> Value:
    """The weight is multiplied in f32, and the result rounded."""
    variance = mean(pow(cast(x, dtype="f32"), 2.0))
    return cast(cast(w, dtype="f32") * (cast(x, dtype="f32") * rsqrt(variance + EPS)),
                dtype=x.dtype)


def root_alone(x: Value, w: Value) -> Value:
    h = cast(x, dtype="f32")
    return x * cast(rsqrt(mean(h * h) + EPS), dtype=x.dtype) * w


def weight_first(x: Value, w: Value) -> Value:
    return (x * w) * rsqrt(mean(x * x) + EPS)


def weighted_root(x: Value, w: Value) -> Value:
    return x * (rsqrt(mean(x * x) + EPS) * w)


def plain(x: Value, w: Value) -> Value:
    return x * rsqrt(mean(x * x) + EPS) * w


def with_axes(x: Value, w: Value) -> Value:
    """The weight with axes of its own for batch and tokens."""
    ones = (1,) * (len(x.shape) - 1)
    return x * rsqrt(mean(x * x) + EPS) * reshape(w, shape=(*ones, *w.shape))


FORMS: tuple[Callable[[Value, Value], Value], ...] = (
    llama, gemma, chatglm, root_alone, weight_first, weighted_root, plain,
    with_axes)


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_rms_norm_with_casts(form: Callable[[Value, Value], Value], dtype: str) -> None:
    x, w, _ = operands(dtype)
    assert made(graph_of(form(x, w))) == ["rms_norm"]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_norm_of_heads(form: Callable[[Value, Value], Value]) -> None:
    """Norms of q and k: the rows are the heads."""
    q = leaf("q", BATCH, TOKENS, 16, dtype="bf16")
    heads = reshape(q, shape=(BATCH, TOKENS, 4, 4))
    w = leaf("w", 4, dtype="bf16", kind="param")
    assert made(graph_of(form(heads, w))) == ["reshape", "rms_norm"]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_the_sum_before_a_norm_joins_it(form: Callable[[Value, Value], Value]) -> None:
    x, w, _ = operands("bf16")
    total = x + leaf("r", BATCH, TOKENS, 8, dtype="bf16")
    assert made(graph_of(form(total, w), total)) == ["add_rms_norm"]


@pytest.mark.parametrize("form", [gemma, lambda x, w: rms_norm(x, 1.0 + w, eps=EPS)],
                         ids=["gemma", "bf16"])
def test_one_plus_the_weight_is_made_when_weights_are_loaded(
        form: Callable[[Value, Value], Value], golden: Golden,
        request: pytest.FixtureRequest) -> None:
    x, w, _ = operands("bf16")
    before = graph_of(form(x, w))
    lowered = run_pipeline(before, EVERY, verify=True)
    (recipe,) = lowered.recipes.values()
    assert names(lowered.graph) == ["rms_norm"]
    golden(f"passes/norm/one_plus_{request.node.callspec.id}.txt", "\n\n".join(
        text(graph, locations=False) for graph in (before, lowered.graph, recipe)))


def centred(x: Value) -> Value:
    return x - mean(x)


def layer_plain(x: Value, w: Value, b: Value) -> Value:
    c = centred(x)
    return c * rsqrt(mean(c * c) + EPS) * w + b


def layer_quotient(x: Value, w: Value, b: Value) -> Value:
    return b + w * ((x - mean(x)) / sqrt(mean(pow(x - mean(x), 2.0)) + EPS))


def layer_moments(x: Value, w: Value, b: Value) -> Value:
    m = reduce_sum(x) / 8.0
    variance = reduce_sum(x * x) / 8.0 - m * m
    return (x - m) * rsqrt(variance + EPS) * w + b


def layer_of_op(x: Value, w: Value, b: Value) -> Value:
    return layer_norm(x, w, eps=EPS) + b


def layer_in_f32(x: Value, w: Value, b: Value) -> Value:
    h = as_dtype(x, "f32")
    c = centred(h)
    y = c * rsqrt(mean(c * c) + EPS) * as_dtype(w, "f32") + as_dtype(b, "f32")
    return as_dtype(y, x.dtype)


def layer_rounded(x: Value, w: Value, b: Value) -> Value:
    c = centred(as_dtype(x, "f32"))
    return w * as_dtype(c * rsqrt(mean(c * c) + EPS), x.dtype) + b


def layer_of_two_means(x: Value, w: Value, b: Value) -> Value:
    """One mean in two spellings: one value only when both are recognised."""
    c = x - reduce_sum(x) / 8.0
    d = x - mean(x)
    return c * rsqrt(mean(d * d) + EPS) * w + b


LAYER: tuple[Callable[[Value, Value, Value], Value], ...] = (
    layer_plain, layer_quotient, layer_moments, layer_of_op, layer_in_f32, layer_rounded,
    layer_of_two_means)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("form", LAYER, ids=lambda f: f.__name__)
def test_layer_norm(form: Callable[[Value, Value, Value], Value], dtype: str) -> None:
    x, w, b = operands(dtype)
    assert made(graph_of(form(x, w, b))) == ["layer_norm"]
    total = x + leaf("r", BATCH, TOKENS, 8, dtype=dtype)
    assert made(graph_of(form(total, w, b), total)) == ["add_layer_norm"]


def test_layer_norm_without_bias_in_f32() -> None:
    x, w, _ = operands("bf16")
    c = centred(cast(x, dtype="f32"))
    normed = cast(c * rsqrt(mean(c * c) + EPS) * cast(w, dtype="f32"), dtype="bf16")
    assert made(graph_of(normed)) == ["layer_norm"]


def test_bias_after_add_layer_norm() -> None:
    x, w, b = operands("f32")
    normed, total = add_layer_norm(x, x, w, eps=EPS)
    assert made(graph_of(normed + b, total)) == ["add_layer_norm"]


def shifted(x: Value) -> Value:
    e = exp(x - reduce_max(x))
    return e / reduce_sum(e)


def by_reciprocal(x: Value) -> Value:
    e = exp(neg(reduce_max(x)) + x)
    return e * (1.0 / reduce_sum(e))


def unshifted(x: Value) -> Value:
    return exp(x) / reduce_sum(exp(x))


def in_f32(x: Value) -> Value:
    return as_dtype(softmax(as_dtype(x, "f32")), x.dtype)


def shifted_in_f32(x: Value) -> Value:
    return as_dtype(shifted(as_dtype(x, "f32")), x.dtype)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("form", [shifted, by_reciprocal, unshifted, in_f32, shifted_in_f32],
                         ids=lambda f: f.__name__)
def test_softmax(form: Callable[[Value], Value], dtype: str) -> None:
    assert made(graph_of(form(leaf("x", TOKENS, 8, dtype=dtype)))) == ["softmax"]


@operation("x[*b, d], w[d] -> y[*b, d]")
def my_norm(x: Value, w: Value) -> Value:
    """A norm of a user's own."""
    return x / sqrt(reduce_sum(pow(x, 2.0)) / x.shape[-1] + EPS) * w


def test_inside_of_a_users_operation() -> None:
    x, w, _ = operands("f32")
    assert made(graph_of(my_norm(x, w))) == ["rms_norm"]


def test_opened_operations_are_not_made_again() -> None:
    x, w, b = operands("bf16")
    graph = graph_of(softmax(layer_norm(rms_norm(x, w, eps=EPS), w, b, eps=EPS)))
    lowered = run_pipeline(graph, CPU, verify=True)
    assert not {f.rule for r in lowered.report for f in r.fired} & {r.name for r in RULES}
    assert names(lowered.graph) == ["loop"]


@pytest.mark.parametrize("form", [*FORMS, *LAYER], ids=lambda f: f.__name__)
def test_twice_changes_nothing(form: Callable[..., Value]) -> None:
    graph = graph_of(form(*operands("bf16")[:2 if form in FORMS else 3]))
    once = run_pipeline(graph, EVERY)
    again = run_pipeline(once.graph, EVERY)
    assert not {f.rule for r in again.report for f in r.fired} & {r.name for r in RULES}
    assert text(again.graph) == text(once.graph)
    assert_same(graph, once)


def test_norm_that_feeds_a_linear_on_cpu() -> None:
    """Written as maths or as an Operation, the same calls are left."""
    x, w, _ = operands("f32")
    weight = leaf("p", 4, 8, kind="param")
    lowered = [run_pipeline(graph_of(linear(normed, weight)), CPU, verify=True)
               for normed in (rms_norm(x, w, eps=EPS), weight_first(x, w), llama(x, w))]
    assert {tuple(names(each.graph)) for each in lowered} == {("matmul_prologue",)}
