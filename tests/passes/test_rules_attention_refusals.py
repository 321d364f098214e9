"""Why attention written as maths is not recognised: the reason, and the line that is to blame."""

from __future__ import annotations

from typing import Any

from attentioncase import (
    DIM,
    HEADS,
    KV_HEADS,
    TOKENS,
    attended,
    keys,
    operands,
    positions,
    rows,
    scores_of,
    tokens,
)
from passcase import CPU, graph_of, leaf, line_of, names
from rulecase import only_miss

from graphdsl.ir import Value
from graphdsl.layer import BATCH
from graphdsl.ops.attention import attention
from graphdsl.ops.linear import matmul
from graphdsl.ops.math import cast, tanh, where
from graphdsl.ops.norm import softmax
from graphdsl.ops.shape import expand, repeat_interleave, reshape, transpose
from graphdsl.passes import attention as rules
from graphdsl.passes import views
from graphdsl.passes.pipeline import run_pipeline
from graphdsl.passes.weighted import (
    Attend,
    Biased,
    Capped,
    Divided,
    Grouped,
    Masked,
    Scaled,
    Widened,
    weighted_sum,
)

Q, K, V = operands()
PRODUCT = matmul(Q, transpose(K, order=(0, 1, 3, 2)))  # product
NONE = leaf("none", TOKENS, TOKENS)


def near_miss(scores: Value, rule: Any) -> tuple[str, Any]:
    miss = only_miss(graph_of(weighted_sum(scores, V, NONE, scale=1.0, softcap=0.0)), rule)
    return miss.reason, miss.at


def test_a_small_number_is_no_mask() -> None:
    scores = where(keys() <= tokens(), PRODUCT, -100.0)
    assert near_miss(scores, Masked()) == (
        "what is not seen gets -100.0, wanted -inf or at most -1e9",
        line_of("product", __file__))


def test_f16_has_a_lowest_number_of_its_own() -> None:
    q, k, v = operands("f16")
    scores = where(keys() <= tokens(), scores_of(q, k), -65504.0)
    assert attended(graph_of(matmul(softmax(scores), v)))["causal"]


def test_a_condition_on_rows_is_no_mask() -> None:
    rows_only = tokens() > 0  # rows
    reason, at = near_miss(where(rows_only, PRODUCT, -1e9), Masked())
    assert reason == "the condition is bool[tokens, 1] and does not tell keys apart"
    assert at == line_of("rows", __file__)


def test_a_negative_cap() -> None:
    graph = graph_of(weighted_sum(tanh(PRODUCT), V, NONE, scale=-2.0, softcap=0.0))
    miss = only_miss(graph, Capped())
    assert (miss.reason, miss.at) == ("the cap is -2.0, wanted a number above 0",
                                      line_of("product", __file__))


def test_a_size_is_no_scale() -> None:
    reason, at = near_miss(PRODUCT / TOKENS, Divided())
    assert (reason, at) == ("the scale is the size tokens", line_of("product", __file__))


def test_scores_that_are_rounded() -> None:
    narrow = cast(PRODUCT, dtype="bf16")  # narrow
    reason, at = near_miss(narrow, Widened())
    assert (reason, at) == ("dtype of cast is bf16, wanted f32", line_of("narrow", __file__))


def test_a_scale_after_the_mask() -> None:
    graph = graph_of(weighted_sum(PRODUCT + NONE, V, NONE, scale=0.3, softcap=0.0))  # scaled
    miss = only_miss(graph, Biased())
    assert (miss.reason, miss.at) == ("scale of weighted_sum is 0.3, wanted 1.0",
                                      line_of("scaled", __file__))


def test_scores_without_heads() -> None:
    q, k, v = (leaf(n, BATCH, TOKENS, DIM) for n in "qkv")
    flat = matmul(q, transpose(k, order=(0, 2, 1)))
    miss = only_miss(graph_of(weighted_sum(flat, v, NONE, scale=1.0, softcap=0.0)), Attend())
    assert miss.reason == f"q is {q.type}, wanted [batch, heads, tokens, d]"
    graph = graph_of(matmul(softmax(flat), v))
    assert "matmul" in names(run_pipeline(graph, CPU, verify=True).graph)


def test_another_dtype_of_v() -> None:
    narrow = leaf("v", BATCH, HEADS, TOKENS, DIM, dtype="bf16")
    miss = only_miss(graph_of(weighted_sum(PRODUCT, narrow, NONE, scale=1.0, softcap=0.0)),
                     Attend())
    assert miss.reason == f"q is {Q.type}, v is {narrow.type}"


def test_scores_that_are_read_elsewhere() -> None:
    scores = PRODUCT * 0.3  # read
    graph = graph_of(weighted_sum(scores, V, NONE, scale=1.0, softcap=0.0), scores)
    assert only_miss(graph, Scaled()).reason == "the result of mul is an output too"


def heads_last() -> tuple[Value, Value, Value]:
    q, k, v = (leaf(n, BATCH, TOKENS, HEADS, DIM) for n in "qkv")
    return q, k, v


def test_k_and_v_of_other_heads() -> None:
    q, k, _ = heads_last()
    few = leaf("few", BATCH, TOKENS, KV_HEADS, DIM)
    twice = repeat_interleave(few, n=2, axis=2)  # twice
    miss = only_miss(graph_of(attention(q, k, twice)), rules.SharedHeads())
    assert miss.reason == f"k is repeated from {k.type}, v from {few.type}"
    assert miss.at == line_of("twice", __file__)


def test_a_bias_is_no_bool() -> None:
    q, k, v = heads_last()
    mask = where(NONE > 0, NONE, -1e9)  # bias
    miss = only_miss(graph_of(attention(q, k, v, mask=mask, causal=False)), rules.BoolMask())
    assert (miss.reason, miss.at) == ("the mask is a bias too", line_of("bias", __file__))


def test_a_mask_of_rows_is_no_bool() -> None:
    q, k, v = heads_last()
    mask = where(tokens() > 0, 0.0, -1e9)  # whole rows
    miss = only_miss(graph_of(attention(q, k, v, mask=mask, causal=False)), rules.BoolMask())
    assert miss.reason == "the mask is f32[tokens, 1] and does not tell keys apart"
    assert miss.at == line_of("whole rows", __file__)


def test_an_offset_is_not_causal() -> None:
    q, k, v = heads_last()
    mask = keys() <= rows(positions()) + 1  # offset
    miss = only_miss(graph_of(attention(q, k, v, mask=mask, causal=False)), rules.CausalMask())
    assert miss.reason == "no condition of the mask is key <= position"
    assert miss.at == line_of("offset", __file__)


def test_two_kinds_of_positions() -> None:
    q, k, v = heads_last()
    mask = keys() <= rows(leaf("others", BATCH, TOKENS, dtype="i32"))  # others
    miss = only_miss(graph_of(attention(q, k, v, positions(), mask, causal=False)),
                     rules.CausalMask())
    assert (miss.reason, miss.at) == ("it has other positions", line_of("others", __file__))


def test_a_window_of_other_positions() -> None:
    q, k, v = heads_last()
    mask = keys() > rows(leaf("others", BATCH, TOKENS, dtype="i32")) - 3  # window
    graph = graph_of(attention(q, k, v, positions(), mask))
    miss = only_miss(graph, rules.WindowMask())
    assert miss.reason == "no condition of the mask is key > position - window"
    assert miss.at == line_of("window", __file__)


def test_what_is_expanded_otherwise() -> None:
    wide = expand(NONE[:, None, None], shape=(TOKENS, 2, 3, TOKENS))  # two axes
    miss = only_miss(graph_of(reshape(wide, shape=(6 * TOKENS, TOKENS))), views.RepeatedRows())
    assert (miss.reason, miss.at) == ("2 axes are expanded, wanted one",
                                      line_of("two axes", __file__))
    other = expand(NONE[:, None], shape=(TOKENS, 2, TOKENS))  # not merged
    graph = graph_of(reshape(other, shape=(TOKENS, 2 * TOKENS)))
    miss = only_miss(graph, views.RepeatedRows())
    assert (miss.reason, miss.at) == ("the expanded axis is not merged into the one before",
                                      line_of("not merged", __file__))


def test_scores_that_are_broadcast() -> None:
    rows_of_heads = leaf("a", BATCH, 1, TOKENS, TOKENS) * 1.5  # broadcast
    other = leaf("b", 1, HEADS, TOKENS, TOKENS) * 1.5  # other
    reason, at = near_miss(rows_of_heads + other, Biased())
    assert reason == "the scores are broadcast"
    assert at == line_of("broadcast", __file__)


def test_a_product_that_is_broadcast_to_a_bias() -> None:
    q, k, _ = operands()
    one = matmul(q[:, :1], transpose(k[:, :1], order=(0, 1, 3, 2)))  # one head
    reason, at = near_miss(leaf("bias", BATCH, HEADS, TOKENS, TOKENS) + one, Biased())
    assert reason == "the other operand is the product of q and k"
    assert at == line_of("one head", __file__)


def test_a_mask_of_heads_in_every_group() -> None:
    q, k, v = (leaf(n, BATCH, 2, 3, TOKENS, DIM) for n in "qkv")
    mask = leaf("mask", 3, TOKENS, TOKENS) * 1.5  # heads
    scores = matmul(q, transpose(k, order=(0, 1, 2, 4, 3)))
    miss = only_miss(graph_of(weighted_sum(scores, v, mask, scale=1.0, softcap=0.0)), Grouped())
    assert miss.reason == (f"the mask is {mask.type}: heads of one group, or groups of one head, "
                           "share it")
    assert miss.at == line_of("heads", __file__)
