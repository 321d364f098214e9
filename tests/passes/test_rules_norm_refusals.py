"""Why what is written as the maths of a norm or of softmax is none, with the line."""

from __future__ import annotations

from passcase import graph_of, leaf, line_of
from rulecase import made, only_miss

from graphdsl.ir import Dim
from graphdsl.ops.math import (
    cast,
    exp,
    mean,
    reduce_max,
    reduce_sum,
    rsqrt,
    sqrt,
    tanh,
)
from graphdsl.ops.norm import layer_norm, rms_norm
from graphdsl.passes import norm
from graphdsl.passes import softmax as softmax_rules
from graphdsl.passes.engine import apply_rules

BATCH, TOKENS = Dim("batch"), Dim("tokens")
EPS = 1e-5
RULES = [*norm.RULES, *softmax_rules.RULES]
X, W, B = leaf("x", BATCH, TOKENS, 8), leaf("w", 8, kind="param"), leaf("b", 8, kind="param")
X16 = leaf("x", BATCH, TOKENS, 8, dtype="bf16")


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
