"""Norms and softmax in all the ways in which they are written, and why one is not recognised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from passcase import CPU, assert_same, graph_of, leaf, line_of, names
from rulecase import EVERY, golden_text, made, only_miss

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
    tanh,
)
from graphdsl.ops.norm import add_layer_norm, layer_norm, rms_norm, softmax
from graphdsl.ops.shape import reshape
from graphdsl.passes import norm
from graphdsl.passes import softmax as softmax_rules
from graphdsl.passes.engine import apply_rules
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


X, W, B = operands("f32")
X16, W16, B16 = operands("bf16")


def test_another_length() -> None:
    total = reduce_sum(X)
    average = total / 7.0  # seven
    miss = only_miss(graph_of(average), norm.MeanOfSum())
    assert miss.reason == "7.0 is not the length of a row, which is 8"
    assert miss.loc == line_of("seven", __file__)
    miss = only_miss(graph_of(total * 0.2), norm.MeanOfScaledSum())
    assert miss.reason == "0.2 is not one over the length of a row, which is 8"


def test_a_sum_that_is_read_twice() -> None:
    total = reduce_sum(X)  # total
    miss = only_miss(graph_of(total / 8.0, tanh(total)), norm.MeanOfSum())
    assert miss.reason.startswith("the result of reduce_sum is read by tanh at ")
    assert miss.at == line_of("total", __file__)


def test_a_root_of_more_than_a_number() -> None:
    root = sqrt(exp(X))  # root
    miss = only_miss(graph_of(X / root), norm.QuotientByRoot())
    assert miss.reason == "the root is not one number for a row"
    assert miss.at == line_of("root", __file__)


def test_a_product_without_a_weight() -> None:
    other = leaf("other", BATCH, TOKENS, 8)
    root = rsqrt(mean(X * X) + EPS)
    for rule, product in ((norm.RootFirst(), (X * other) * root),
                          (norm.RootOfWeight(), X * (other * root))):
        assert only_miss(graph_of(product), rule).reason == "it is no row with a weight"


def test_the_mean_of_another_value() -> None:
    other = leaf("other", BATCH, TOKENS, 8)
    square = other * other  # square
    miss = only_miss(graph_of(X * rsqrt(mean(square) + EPS) * W), norm.RMSNorm())
    assert miss.reason == "x would have to be two different values"
    assert miss.at is None


def test_eps_is_no_number() -> None:
    root = rsqrt(mean(X * X) + leaf("eps", 1))  # eps
    miss = only_miss(graph_of(X * root * W), norm.RMSNorm())
    assert miss.reason == "eps is eps, wanted a number"


def test_a_mean_of_the_product() -> None:
    product = X * leaf("other", BATCH, TOKENS, 8)  # product
    miss = only_miss(graph_of(X * rsqrt(mean(product) + EPS) * W), norm.RMSNorm())
    assert miss.reason == "x would have to be two different values"


def test_a_normalised_row_that_is_read_twice() -> None:
    normed = X * rsqrt(mean(X * X) + EPS)  # normed
    miss = only_miss(graph_of(normed * W, normed), norm.RMSNorm())
    assert miss.reason == "the result of mul is an output too"
    assert miss.at == line_of("normed", __file__)


def test_a_weight_for_every_row() -> None:
    weight = leaf("rows", BATCH, TOKENS, 8)
    normed = X * rsqrt(mean(X * X) + EPS) * weight  # rows
    miss = only_miss(graph_of(normed), norm.RMSNorm())
    assert miss.reason.startswith("what it would make does not fit: rms_norm: weight is f32[")
    assert miss.loc == line_of("rows", __file__)


def test_a_norm_in_f32_that_is_rounded_to_another_dtype() -> None:
    normed = rms_norm(cast(X16, dtype="f32"), W, eps=EPS)
    miss = only_miss(graph_of(cast(normed, dtype="f16")), norm.RMSNormOfCast())
    assert miss.reason == "it would make bf16[batch, tokens, 8] of f16[batch, tokens, 8]"


def test_a_sum_of_squares_is_no_mean() -> None:
    root = rsqrt(reduce_sum(X * X) + EPS)
    assert not apply_rules(graph_of(X * root * W), RULES)[1]


def test_centred_on_something_else() -> None:
    other = leaf("other", BATCH, TOKENS, 8)
    average = mean(other)  # average
    miss = only_miss(graph_of(rms_norm(X - average, W, eps=EPS)), norm.LayerNorm())
    assert miss.reason == "x would have to be two different values"


def test_a_residual_is_no_bias() -> None:
    """Without a word: an add after a norm is nothing unusual."""
    graph = graph_of(layer_norm(X, W, eps=EPS) + X)
    assert apply_rules(graph, [norm.LayerNormBias()])[1:] == ((), ())


def test_two_norms_of_one_sum_in_two_ways() -> None:
    """The first takes the sum, the second reads it."""
    total = X + leaf("r", BATCH, TOKENS, 8)
    graph = graph_of(layer_norm(total, W, B, eps=EPS), rms_norm(total, W, eps=EPS))
    assert sorted(made(graph)) == ["add_layer_norm", "rms_norm"]


def test_softmax_over_another_sum() -> None:
    e = exp(X - reduce_max(X))
    other = exp(X)  # other
    miss = only_miss(graph_of(e / reduce_sum(other)), softmax_rules.Softmax())
    assert miss.at == line_of("other", __file__)
    assert miss.reason == "exp would have to be two different values"


def test_softmax_whose_exponentials_are_read_too() -> None:
    e = exp(X - reduce_max(X))  # exponentials
    miss = only_miss(graph_of(e / reduce_sum(e), e), softmax_rules.Softmax())
    assert miss.reason == "the result of exp is an output too"
    assert miss.at == line_of("exponentials", __file__)


def test_norm_that_feeds_a_linear_on_cpu() -> None:
    """Written as maths or as an Operation, the same calls are left."""
    x, w, _ = operands("f32")
    weight = leaf("p", 4, 8, kind="param")
    lowered = [run_pipeline(graph_of(linear(normed, weight)), CPU, verify=True)
               for normed in (rms_norm(x, w, eps=EPS), weight_first(x, w), llama(x, w))]
    assert {tuple(names(each.graph)) for each in lowered} == {("matmul_prologue",)}
