"""Attention in the ways in which it is written, and why it is not recognised."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
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
from passcase import CPU, assert_same, graph_of, leaf, names
from rulecase import golden_text

from graphdsl.ir import Layout, TensorType, Value
from graphdsl.layer import BATCH, SLOTS
from graphdsl.ops.kv import kv_append
from graphdsl.ops.linear import matmul
from graphdsl.ops.math import (
    cast,
    exp,
    logical_and,
    logical_not,
    logical_or,
    reduce_max,
    reduce_sum,
    tanh,
    where,
)
from graphdsl.ops.norm import softmax
from graphdsl.ops.shape import arange, expand, repeat_interleave, reshape, transpose
from graphdsl.passes import attention as rules
from graphdsl.passes import views
from graphdsl.passes.engine import apply_rules
from graphdsl.passes.pipeline import run_pipeline

Golden = Callable[[str, str], None]
Masking = Callable[[Value], Value]
INFINITE = float("inf")


@pytest.mark.parametrize("rule", [*rules.RULES, *views.RULES], ids=lambda r: r.name)
def test_golden(rule: Any, golden: Golden) -> None:
    golden(f"passes/attention/{rule.name}.txt", golden_text(rule))


SCALED: dict[str, Callable[[Value, Value], Value]] = {
    "scores * number": lambda q, k: scores_of(q, k) * 0.3,
    "number * scores": lambda q, k: 0.3 * scores_of(q, k),
    "scores / number": lambda q, k: scores_of(q, k) / (1 / 0.3),
    "q * number": lambda q, k: scores_of(q * 0.3, k),
    "q / number": lambda q, k: scores_of(q / (1 / 0.3), k),
    "k * number": lambda q, k: scores_of(q, k * 0.3),
    "q and k by the root": lambda q, k: scores_of(q * math.sqrt(0.3), k * math.sqrt(0.3)),
    "twice": lambda q, k: scores_of(q * 0.6, k) * 0.5,
}


@pytest.mark.parametrize("scaled", SCALED)
def test_scale(scaled: str) -> None:
    q, k, v = operands()
    y = matmul(softmax(SCALED[scaled](q, k)), v)
    assert attended(graph_of(y))["scale"] == pytest.approx(0.3)


def test_the_usual_scale_is_the_default() -> None:
    q, k, v = operands()
    usual = matmul(softmax(scores_of(q, k) / math.sqrt(DIM)), v)
    assert attended(graph_of(usual))["scale"] is None
    assert attended(graph_of(matmul(softmax(scores_of(q, k)), v)))["scale"] == 1.0


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_softmax_in_f32(dtype: str) -> None:
    q, k, v = operands(dtype)
    wide = softmax(cast(scores_of(q, k), dtype="f32") * 0.3)
    assert attended(graph_of(matmul(cast(wide, dtype=dtype), v)))["scale"] == pytest.approx(0.3)
    late = softmax(cast(scores_of(q, k) * 0.3, dtype="f32"))
    assert attended(graph_of(matmul(cast(late, dtype=dtype), v)))["scale"] == pytest.approx(0.3)


def test_softmax_of_kernels() -> None:
    q, k, v = operands()
    weights = exp((s := scores_of(q, k)) - reduce_max(s))
    assert attended(graph_of(matmul(weights / reduce_sum(weights), v)))["causal"] is False


CAUSAL: dict[str, Callable[[Value], Any]] = {
    "key <= position": lambda p: keys() <= rows(p),
    "position >= key": lambda p: rows(p) >= keys(),
    "key < position + 1": lambda p: keys() < rows(p) + 1,
    "position - key >= 0": lambda p: rows(p) - keys() >= 0,
    "not key > position": lambda p: logical_not(keys() > rows(p)),
    "compared as [b, t, s]": lambda p: reshape(keys() <= p[:, :, None],
                                               shape=(BATCH, 1, TOKENS, TOKENS)),
    "keys of four axes": lambda p: reshape(keys(), shape=(1, 1, 1, TOKENS)) <= rows(p),
    "expanded": lambda p: expand(keys() <= rows(p), shape=(BATCH, HEADS, TOKENS, TOKENS)),
}

MASKED: dict[str, Callable[[Value, Value], Value]] = {
    "chosen": lambda s, seen: where(seen, s, -INFINITE),
    "chosen, finite": lambda s, seen: where(seen, s, -1e9),
    "filled": lambda s, seen: where(logical_not(seen), -1e9, s),
    "added": lambda s, seen: s + where(seen, 0.0, -3.4e38),
    "added first": lambda s, seen: where(logical_not(seen), -INFINITE, 0.0) + s,
}


@pytest.mark.parametrize("masked", MASKED)
@pytest.mark.parametrize("seen", CAUSAL)
def test_causal_by_positions(seen: str, masked: str) -> None:
    q, k, v = operands()
    scores = MASKED[masked](scores_of(q, k) * 0.3, CAUSAL[seen](positions()))
    found = attended(graph_of(matmul(softmax(scores), v)))
    assert (found["causal"], found["given"]) == (True, ("positions",))


@pytest.mark.parametrize("masked", MASKED)
def test_causal_by_tokens(masked: str) -> None:
    q, k, v = operands()
    scores = MASKED[masked](scores_of(q, k), keys() <= tokens())
    found = attended(graph_of(matmul(softmax(scores), v)))
    assert (found["causal"], found["given"], found["window"]) == (True, (), 0)


def test_positions_that_all_sequences_share() -> None:
    q, k, v = operands()
    shared = leaf("positions", 1, TOKENS, dtype="i32")
    seen = keys() <= reshape(shared, shape=(1, 1, TOKENS, 1))
    found = attended(graph_of(matmul(softmax(where(seen, scores_of(q, k), -1e9)), v)))
    assert (found["causal"], found["given"]) == (True, ("positions",))


WINDOWS: dict[str, Callable[[Any], Any]] = {
    "key > position - 3": lambda at: keys() > at - 3,
    "position - key < 3": lambda at: at - keys() < 3,
    "key + 3 > position": lambda at: keys() + 3 > at,
    "not key <= position - 3": lambda at: logical_not(keys() <= at - 3),
}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("by", ["positions", "tokens"])
def test_window(by: str, window: str) -> None:
    q, k, v = operands()
    at = rows(positions()) if by == "positions" else tokens()
    for seen in (logical_and(keys() <= at, WINDOWS[window](at)),
                 logical_not(logical_or(keys() > at, logical_not(WINDOWS[window](at))))):
        found = attended(graph_of(matmul(softmax(where(seen, scores_of(q, k), -1e9)), v)))
        assert (found["causal"], found["window"]) == (True, 3)


def test_masks_one_after_the_other() -> None:
    q, k, v = operands()
    at = rows(positions())
    scores = where(keys() > at - 3, where(keys() <= at, scores_of(q, k), -INFINITE), -INFINITE)
    assert attended(graph_of(matmul(softmax(scores), v)))["window"] == 3


@pytest.mark.parametrize("shape", [(TOKENS, TOKENS), (HEADS, 1, TOKENS), (1, 1, 1, TOKENS),
                                   (BATCH, HEADS, TOKENS, TOKENS)])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_bias(dtype: str, shape: tuple[Any, ...]) -> None:
    q, k, v = operands(dtype)
    bias = leaf("bias", *shape, dtype=dtype)
    for scores in (scores_of(q, k) * 0.3 + bias, bias + scores_of(q, k) * 0.3):
        assert attended(graph_of(matmul(softmax(scores), v)))["given"] == ("mask",)


def test_a_bias_beside_a_causal_mask() -> None:
    q, k, v = operands()
    bias, seen = leaf("bias", HEADS, TOKENS, TOKENS), keys() <= rows(positions())
    for scores in (where(seen, scores_of(q, k) + bias, -1e9),
                   scores_of(q, k) + bias + where(seen, 0.0, -1e9),
                   scores_of(q, k) + where(seen, bias, -1e9)):
        found = attended(graph_of(matmul(softmax(scores), v)))
        assert (found["causal"], found["given"]) == (True, ("positions", "mask"))


def test_bool_mask_that_is_given() -> None:
    q, k, v = operands()
    given = leaf("seen", TOKENS, TOKENS, dtype="bool")
    seen = logical_or(given, keys() <= 0)
    scores = where(logical_and(seen, keys() <= tokens()), scores_of(q, k), -1e9)
    lowered = run_pipeline(graph_of(matmul(softmax(scores), v)), CPU, verify=True)
    found = next(n for n in lowered.graph.nodes if n.name == "attention")
    assert (found.attr["causal"], found.attr["given"]) == (True, ("mask",))


CAPPED: dict[str, Callable[[Value], Any]] = {
    "cap * tanh(s / cap)": lambda s: 5.0 * tanh(s * 0.3 / 5.0),
    "tanh(s * (1 / cap)) * cap": lambda s: tanh(s * 0.3 * 0.2) * 5.0,
    "in steps": lambda s: tanh(s * 0.3 / 5.0) * 2.5 * 2.0,
}


@pytest.mark.parametrize("capped", CAPPED)
def test_softcap(capped: str) -> None:
    q, k, v = operands()
    scores = where(keys() <= rows(positions()), CAPPED[capped](scores_of(q, k)), -1e9)
    found = attended(graph_of(matmul(softmax(scores), v)))
    assert (found["softcap"], found["scale"]) == (5.0, pytest.approx(0.3))


def repeat_kv(x: Value) -> Any:
    """As transformers has it."""
    b, g, s, d = x.shape
    wide = expand(x[:, :, None, :, :], shape=(b, g, HEADS // KV_HEADS, s, d))
    return reshape(wide, shape=(b, HEADS, s, d))


REPEATED: dict[str, Callable[[Value], Any]] = {
    "expanded": repeat_kv,
    "repeated": lambda x: repeat_interleave(x, n=2, axis=1),
    "repeated heads last": lambda x: transpose(
        repeat_interleave(transpose(x, order=(0, 2, 1, 3)), n=2, axis=-2), order=(0, 2, 1, 3)),
}


@pytest.mark.parametrize("repeated", REPEATED)
def test_heads_that_share(repeated: str) -> None:
    q, k, v = operands(kv_heads=KV_HEADS)
    k, v = (REPEATED[repeated](x) for x in (k, v))
    assert attended(graph_of(matmul(softmax(scores_of(q, k)), v)))


def test_heads_in_groups() -> None:
    """Every group of heads beside its key, in axes of their own."""
    q, k, v = (leaf(n, BATCH, TOKENS, heads, DIM)
               for n, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)))
    n = HEADS // KV_HEADS
    shape = (BATCH, KV_HEADS, n, TOKENS, DIM)
    grouped = transpose(reshape(q, shape=(BATCH, TOKENS, KV_HEADS, n, DIM)),
                        order=(0, 2, 3, 1, 4))
    k, v = (expand(transpose(x, order=(0, 2, 1, 3))[:, :, None], shape=shape) for x in (k, v))
    scores = matmul(grouped, transpose(k, order=(0, 1, 2, 4, 3))) * 0.3
    seen = reshape(keys() <= rows(positions()), shape=(BATCH, 1, 1, TOKENS, TOKENS))
    mixed = matmul(softmax(where(seen, scores, -INFINITE)), v)
    y = reshape(transpose(mixed, order=(0, 3, 1, 2, 4)), shape=(BATCH, TOKENS, HEADS * DIM))
    found = run_pipeline(graph_of(y), CPU, verify=True).graph
    assert names(found) == ["attention", "reshape"]
    assert found.nodes[0].attr["given"] == ("positions",)


def test_one_head_for_all() -> None:
    q, k, v = operands(kv_heads=1)
    shape = (BATCH, HEADS, TOKENS, DIM)
    scores = scores_of(q, expand(k, shape=shape))
    assert attended(graph_of(matmul(softmax(scores), expand(v, shape=shape))))


def test_heads_last_without_a_view() -> None:
    """In [batch, tokens, heads, d] the transposes that the maths needs are gone at the end."""
    q, k, v = (leaf(n, BATCH, TOKENS, HEADS, DIM) for n in "qkv")
    turned = (transpose(x, order=(0, 2, 1, 3)) for x in (q, v))
    first, values = turned
    scores = matmul(first, transpose(k, order=(0, 2, 3, 1)))
    y = transpose(matmul(softmax(scores), values), order=(0, 2, 1, 3))
    assert names(run_pipeline(graph_of(y), CPU, verify=True).graph) == ["attention"]


def test_kv_cache() -> None:
    q, x = leaf("q", BATCH, HEADS, TOKENS, DIM), leaf("x", BATCH, TOKENS, KV_HEADS, DIM)
    at = positions()
    kind = TensorType((BATCH, SLOTS, KV_HEADS, DIM), "f32", Layout())
    old = Value(kind, name="k", kind="state"), Value(kind, name="v", kind="state")
    new = [kv_append(cache, x, at) for cache in old]
    k, v = (repeat_kv(transpose(cache, order=(0, 2, 1, 3))) for cache in new)
    seen = arange(size=SLOTS) <= rows(at)
    y = matmul(softmax(where(seen, scores_of(q, k), -INFINITE)), v)
    graph = graph_of(transpose(y, order=(0, 2, 1, 3)), *new, state=old)
    lowered = run_pipeline(graph, CPU, verify=True)
    assert names(lowered.graph) == ["transpose", "kv_append", "kv_append", "attention"]


def test_all_at_once() -> None:
    """Soft cap, causal mask, window, bias and shared heads, in bf16."""
    q, k, v = operands("bf16", KV_HEADS)
    bias, at = leaf("bias", HEADS, 1, TOKENS), rows(positions())
    scores = tanh(cast(scores_of(q, repeat_kv(k)), dtype="f32") * 0.1) * 4.0 + bias
    scores = where(logical_and(keys() <= at, keys() > at - 2), scores, -1e9)
    y = matmul(cast(softmax(scores), dtype="bf16"), repeat_kv(v))
    found = attended(graph_of(y))
    assert (found["causal"], found["window"], found["softcap"]) == (True, 2, 4.0)


def test_each_rule_is_done_at_once() -> None:
    q, k, v = operands()
    for scaled, masked in itertools.product(SCALED.values(), MASKED.values()):
        graph = graph_of(matmul(softmax(masked(scaled(q, k), keys() <= tokens())), v))
        after, fired, _ = apply_rules(graph, [*rules.RULES, *views.RULES])
        assert fired
        assert_same(graph, after)
        assert not apply_rules(after, [*rules.RULES, *views.RULES])[1]
