"""Linears in all the ways in which they are written, and what follows one on a backend that has
epilogues."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from passcase import CPU, PLAIN, WHOLE, assert_same, graph_of, leaf, line_of, names
from rulecase import EVERY, golden_text, made, only_miss

from graphdsl import ops
from graphdsl.ir import Dim, Graph, Value
from graphdsl.ops.linear import linear, matmul, matmul_nt
from graphdsl.ops.math import maximum, tanh
from graphdsl.ops.shape import reshape, transpose
from graphdsl.passes import linear as rules
from graphdsl.passes.base import Missed
from graphdsl.passes.engine import apply_rules
from graphdsl.passes.pipeline import run_pipeline
from graphdsl.printer import text

Golden = Callable[[str, str], None]
BATCH, TOKENS = Dim("batch"), Dim("tokens")
X, ROWS, R = leaf("x", BATCH, TOKENS, 8), leaf("x", TOKENS, 8), leaf("r", BATCH, TOKENS, 16)
W, V = leaf("w", 16, 8, kind="param"), leaf("v", 8, 16, kind="param")
B, WK, BK = (leaf("b", 16, kind="param"), leaf("wk", 4, 8, kind="param"),
             leaf("bk", 4, kind="param"))


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda r: r.name)
def test_golden(rule: Any, golden: Golden) -> None:
    golden(f"passes/linear/{rule.name}.txt", golden_text(rule))


PRODUCTS: dict[str, Callable[[], Value]] = {
    "linear": lambda: linear(X, W),
    "matmul_nt": lambda: matmul_nt(X, W),
    "x @ [in, out]": lambda: X @ V,
    "rows @ [in, out]": lambda: ROWS @ V,
    "matmul": lambda: matmul(ROWS, V),
    "x @ w.T": lambda: X @ transpose(W, order=(1, 0)),
    "linear(x, v.T)": lambda: linear(X, transpose(V, order=(1, 0))),
}


@pytest.mark.parametrize("form", PRODUCTS)
def test_linear(form: str) -> None:
    """What else there is to do with a weight is done when it is loaded."""
    assert made(graph_of(PRODUCTS[form]())) == ["linear"]
    assert made(graph_of(PRODUCTS[form]() + B)) == ["linear"]
    assert made(graph_of(B + PRODUCTS[form]())) == ["linear"]


def test_bias_with_axes() -> None:
    assert made(graph_of(linear(X, W) + reshape(B, shape=(1, 1, 16)))) == ["linear"]


def test_conv1d(golden: Golden) -> None:
    """A layer of GPT-2: the weight is [in, out]."""
    before = graph_of(X @ V + B)
    lowered = run_pipeline(before, EVERY, verify=True)
    golden("passes/linear/conv1d.txt", "\n\n".join(
        text(graph, locations=False)
        for graph in (before, lowered.graph, *lowered.recipes.values())))


def test_conv1d_of_q_k_and_v() -> None:
    weights = [leaf(f"w{n}", 8, s, kind="param") for n, s in zip("qkv", (16, 4, 4), strict=True)]
    biases = [leaf(f"b{n}", s, kind="param") for n, s in zip("qkv", (16, 4, 4), strict=True)]
    graph = graph_of(*(X @ w + b for w, b in zip(weights, biases, strict=True)))
    assert made(graph) == ["linear", "split"]
    assert names(run_pipeline(graph, CPU, verify=True).graph) == ["matmul_epilogue", "split"]


def test_computed_weight_stays_a_matmul() -> None:
    key = tanh(leaf("k", 16, 8))
    assert made(graph_of(matmul_nt(X, key))) == ["tanh", "matmul_nt"]
    value = tanh(leaf("v", 8, 16))
    assert made(graph_of(matmul(ROWS, value))) == ["tanh", "matmul"]
    batched = leaf("experts", 3, 8, 16, kind="param")
    assert made(graph_of(leaf("x", 3, 5, 8) @ batched)) == ["matmul"]


def test_bias_that_is_not_a_param() -> None:
    bias = tanh(leaf("c", 16))  # bias
    miss = only_miss(graph_of(linear(X, W) + bias), rules.LinearBias())
    assert miss.reason == "the bias is not a Param"
    assert miss.at == line_of("bias", __file__)


def test_product_that_is_read_before_the_bias() -> None:
    product = linear(X, W)  # product
    miss = only_miss(graph_of(product + B, product), rules.LinearBias())
    assert miss.reason == "the result of linear is an output too"
    assert miss.at == line_of("product", __file__)


def test_residual_is_no_bias() -> None:
    graph = graph_of(linear(X, W) + R)
    assert apply_rules(graph, rules.RULES)[1:] == ((), ())


def test_residual_of_a_linear_with_a_bias_is_no_near_miss() -> None:
    """A linear with a bias is another form of the op than the one that the rule looks for."""
    assert apply_rules(graph_of(R + linear(X, W, B)), [rules.LinearBias()])[1:] == ((), ())


def test_opened_linear_is_not_made_again() -> None:
    lowered = run_pipeline(graph_of(linear(X, W, B)), PLAIN, verify=True)
    assert names(lowered.graph) == ["matmul_nt", "add"]
    assert not [f for r in lowered.report for f in r.fired]


@pytest.mark.parametrize("form", PRODUCTS)
def test_twice_changes_nothing(form: str) -> None:
    graph = graph_of(PRODUCTS[form]() + B)
    after, fired, _ = apply_rules(graph, rules.RULES)
    assert fired
    assert not apply_rules(after, rules.RULES)[1]
    assert_same(graph, after)


FOLLOWING: dict[str, Callable[[Value], Value]] = {
    "nothing": lambda y: y,
    "residual": lambda y: y + R,
    "activation": ops.gelu,
    "residual of an activation": lambda y: R + ops.gelu_tanh(y),
    "activation of a residual": lambda y: ops.silu(y + R),
    "activation as maths": lambda y: y / (1.0 + ops.exp(-y)) + R,
    "gate": lambda y: ops.silu(y) * linear(X, leaf("up", 16, 8, kind="param"), B) + R,
    "scale and cut": lambda y: maximum(y * 0.5, 0.0),
}


@pytest.mark.parametrize("following", FOLLOWING)
@pytest.mark.parametrize("form", ["linear", "matmul_nt", "x @ [in, out]"])
def test_bias_activation_and_residual_are_one_call(form: str, following: str) -> None:
    graph = graph_of(FOLLOWING[following](PRODUCTS[form]() + B))
    assert names(run_pipeline(graph, CPU, verify=True).graph) == ["matmul_epilogue"]


def test_sum_of_two_linears_has_one_kernel_for_each() -> None:
    """The second adds to the first while its sums are in registers."""
    other = leaf("o", BATCH, TOKENS, 8)
    graph = graph_of(linear(X, W, B) + linear(other, leaf("u", 16, 8, kind="param")))
    assert names(run_pipeline(graph, CPU, verify=True).graph) == ["matmul_nt", "matmul_epilogue"]


def mixed() -> tuple[Graph, Value]:
    plain = linear(X, WK)  # plain
    return graph_of(linear(X, W, B), plain), plain


def merge_misses(graph: Graph, target: Any) -> list[Missed]:
    lowered = run_pipeline(graph, target, verify=True)
    return [m for r in lowered.report for m in r.missed if m.rule == "MergeLinears"]


def test_one_with_a_bias_and_one_without() -> None:
    """Left as they are where linears are taken whole; as matmuls they are merged."""
    graph, plain = mixed()
    misses = merge_misses(graph, WHOLE)
    assert {m.reason for m in misses} == {"the other linear of this x has no bias",
                                          "the other linear of this x has a bias"}
    assert plain.loc in {m.at for m in misses}
    assert not merge_misses(graph, CPU)
    lowered = run_pipeline(graph, CPU, verify=True)
    assert sum(n.name.startswith("matmul") for n in lowered.graph.nodes) == 1


def test_two_with_biases_and_one_without() -> None:
    q, k, v = linear(X, W, B), linear(X, WK, BK), linear(X, leaf("wv", 4, 8, kind="param"))
    assert sorted(made(graph_of(q, k, v))) == ["linear", "linear", "split"]
    lowered = run_pipeline(graph_of(q, k, v), CPU, verify=True)
    assert sum(n.name.startswith("matmul") for n in lowered.graph.nodes) == 1


def test_merged_weights_are_put_together_once() -> None:
    """A merge of what was merged before is one concat."""
    graph, _ = mixed()
    lowered = run_pipeline(graph, CPU, verify=True)
    assert {tuple(names(r)) for r in lowered.recipes.values()} == {("concat",)}


def test_pieces_of_a_weight_that_are_merged_again() -> None:
    """Two slices of one weight that read one x: the weight itself is used."""
    graph = graph_of(linear(X, W[:4]), linear(X, W[4:]))
    lowered = run_pipeline(graph, EVERY, verify=True)
    assert names(lowered.graph) == ["linear", "split"]
    assert not lowered.recipes


def test_a_weight_that_is_reshaped_is_made_of_params() -> None:
    flat = leaf("flat", 128, kind="param")
    graph = graph_of(matmul_nt(X, reshape(flat, shape=(16, 8))))
    assert made(graph) == ["linear"]
