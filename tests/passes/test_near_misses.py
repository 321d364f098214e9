"""Graphs that nearly say what a rule looks for and mean something else: they keep their meaning."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attentioncase import keys, operands, positions, rows, scores_of, tokens
from passcase import CPU, PLAIN, WHOLE, assert_same, graph_of, leaf, names
from rulecase import only_miss

from graphdsl.ir import Graph, Size, Value
from graphdsl.ops.attention import attention
from graphdsl.ops.linear import matmul
from graphdsl.ops.math import logical_and, tanh, where
from graphdsl.ops.norm import softmax
from graphdsl.ops.shape import arange, concat, expand, reshape, slice
from graphdsl.passes.base import Target
from graphdsl.passes.pipeline import run_pipeline
from graphdsl.passes.position import TurnedPairs

INFINITE = float("inf")


def turned_pairs(tokens: Size, half: tuple[Size, ...], column: tuple[Size, ...],
                 table: tuple[Size, ...]) -> Graph:
    """Pairs of x that are cut to `half`, turned and put together as `column`."""
    whole = (2, tokens, 4, 6)
    x, c, s = leaf("x", *whole), leaf("cos", *table), leaf("sin", *table)
    pairs = reshape(x, shape=(2, tokens, 4, 3, 2))
    a, b = (reshape(slice(pairs, axis=4, start=i, size=1), shape=half) for i in (0, 1))
    turned = (reshape(y, shape=column) for y in (a * c - b * s, b * c + a * s))
    return graph_of(reshape(concat(*turned, axis=4), shape=whole))


def pairs_that_become_halves() -> Graph:
    return turned_pairs(5, (2, 5, 4, 3), (2, 5, 4, 1, 3), (2, 5, 1, 3))


def pairs_by_a_table_of_sequences() -> Graph:
    return turned_pairs(2, (2, 8, 3), (2, 2, 4, 3, 1), (2, 1, 3))


def windowed(at: Value | None, first: Value) -> Graph:
    """Attention of queries that stand at `at` to keys from `first` - 2 on."""
    q, k, v = leaf("q", 2, 5, 4, 6), leaf("k", 2, 11, 2, 6), leaf("v", 2, 11, 2, 6)
    return graph_of(attention(q, k, v, at, arange(size=11) > first - 3))


def window_of_tokens_elsewhere() -> Graph:
    later = expand(reshape(arange(size=5) + 3, shape=(1, 5)), shape=(2, 5))
    return windowed(later, arange(size=5)[:, None])


def window_of_one_position_before() -> Graph:
    at = leaf("positions", 2, 5, dtype="i32")
    return windowed(at + 1, at[:, None, :, None])


def window_of_half_a_position() -> Graph:
    at = leaf("positions", 2, 5, dtype="i32")
    return windowed(at + at, at[:, None, :, None])


def window_backward() -> Graph:
    at = leaf("positions", 2, 5, dtype="i32")
    return windowed(4 - at, at[:, None, :, None])


def attended(scores: Callable[[Value, Value], Value]) -> Graph:
    q, k, v = operands()
    return graph_of(matmul(softmax(scores(q, k)), v))


def one_key_for_all() -> Graph:
    """A mask by the number of the only key of an arange, which is 0 beside every key."""
    seen = logical_and(arange(size=1) <= rows(positions()), keys() >= 0)
    return attended(lambda q, k: where(seen, scores_of(q, k), -INFINITE))


def one_token_for_all() -> Graph:
    seen = keys() <= arange(size=1)[:, None] + tokens() - tokens()
    return attended(lambda q, k: where(seen, scores_of(q, k), -INFINITE))


def scores_over_nothing() -> Graph:
    return attended(lambda q, k: scores_of(q, k) / 0.0)


def scores_without_end() -> Graph:
    return attended(lambda q, k: scores_of(q, k) * INFINITE)


def cap_of_what_is_over_nothing() -> Graph:
    return attended(lambda q, k: tanh(scores_of(q, k) / 0.0) * 30.0)


def other_views_of_heads(shape: tuple[Size, ...], weight: tuple[Size, ...]) -> Graph:
    """Attention whose result is seen in a shape that does not merge its heads, and weighted."""
    q, k, v = (leaf(n, 2, 5, 4, 6) for n in "qkv")
    return graph_of(reshape(attention(q, k, v), shape=shape) * leaf("w", *weight))


def heads_that_stay_apart() -> Graph:
    return other_views_of_heads((10, 4, 6), (6,))


def heads_as_tokens() -> Graph:
    return other_views_of_heads((2, 20, 6), (2, 20, 1))


def heads_of_one_row() -> Graph:
    return other_views_of_heads((240,), (240,))


GRAPHS: tuple[Callable[[], Graph], ...] = (
    pairs_that_become_halves, pairs_by_a_table_of_sequences, window_of_tokens_elsewhere,
    window_of_one_position_before, window_of_half_a_position, window_backward, one_key_for_all,
    one_token_for_all, cap_of_what_is_over_nothing, heads_that_stay_apart, heads_as_tokens,
    heads_of_one_row)


@pytest.mark.parametrize("target", [CPU, WHOLE, PLAIN], ids=lambda t: t.name)
@pytest.mark.parametrize("made", GRAPHS, ids=lambda f: f.__name__)
def test_meaning(made: Callable[[], Graph], target: Target) -> None:
    graph = made()
    assert_same(graph, run_pipeline(graph, target))


@pytest.mark.parametrize("made", [scores_over_nothing, scores_without_end])
def test_a_scale_is_finite(made: Callable[[], Graph]) -> None:
    """Sums of what is infinite are nan as they are written, so they stay as they are."""
    lowered = run_pipeline(made(), CPU)
    assert "attention" not in names(lowered.graph)


def test_why_halves_are_no_pairs() -> None:
    miss = only_miss(pairs_that_become_halves(), TurnedPairs())
    assert miss.reason == "what is turned does not go back to its pairs"
