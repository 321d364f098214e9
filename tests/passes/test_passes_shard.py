"""What the pass splits, as text, and what it refuses or leaves whole, with the reason and line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from passcase import graph_of, leaf, line_of
from shardcase import CPU, assert_ranks_agree, rank_graphs

from graphdsl.errors import GraphError
from graphdsl.ir import Dim, Graph, TensorType, Value
from graphdsl.layer import KVCache, Layer, Param, trace
from graphdsl.models import llama, mixtral
from graphdsl.ops import (
    all_gather,
    all_reduce,
    attention,
    linear,
    merge_heads,
    mul,
    reduce_sum,
    rms_norm,
    silu,
    softmax,
    split_heads,
)
from graphdsl.passes.base import Result
from graphdsl.passes.pipeline import Lowered, run_pipeline
from graphdsl.passes.shard import Shard
from graphdsl.passes.shard_axes import same_axis
from graphdsl.passes.verify import problem_of
from graphdsl.printer import text
from graphdsl.ranks import run_ranks
from graphdsl.reference import run

TOKENS = Dim("tokens")
SMALL = llama.Config(vocab=48, hidden=16, layers=2, heads=8, kv_heads=2, head_dim=4, ffn=24)
Golden = Callable[[str, str], None]


def sharded(graph: Graph, ranks: int = 2, rank: int = 0) -> Result:
    before = text(graph)
    result = Shard(rank, ranks).run(graph, CPU)
    assert text(graph) == before
    assert not problem_of(result.graph)
    return result


def feed_forward(middle: Callable[[Value], Value], ffn: int = 6) -> Graph:
    """Two linears with `middle` between them, and biases."""
    x = leaf("x", TOKENS, 4)
    up, down = leaf("up", ffn, 4, kind="param"), leaf("down", 4, ffn, kind="param")
    bias, last = leaf("bias", ffn, kind="param"), leaf("last", 4, kind="param")
    return graph_of(x + linear(middle(linear(x, up, bias)), down, last))  # down


def test_two_collectives_a_layer(golden: Golden) -> None:
    graph = trace(llama.LlamaLayer(SMALL))
    result = sharded(graph, ranks=2, rank=1)
    golden("passes/shard/llama_layer.txt",
           f"{text(graph, locations=False)}\n\n{text(result.graph, locations=False)}")
    assert [f.rule for f in result.fired] == ["Shard", "Shard"]
    assert not result.missed


def test_a_model_has_two_more(golden: Golden) -> None:
    graph = trace(llama.Llama(replace(SMALL, tied=True)))
    lowered = run_pipeline(graph, CPU, {"shard": {"rank": "0", "ranks": "4"}})
    golden("passes/shard/llama_model.txt", text(lowered.graph, locations=False))
    made = text(lowered.graph, locations=False)
    assert made.count("all_reduce(") == 3  # the table's, and two in the body of the repeat
    assert made.count("all_gather(") == 1


def test_a_bias_is_added_once(golden: Golden) -> None:
    graph = feed_forward(silu)
    golden("passes/shard/bias.txt", text(sharded(graph).graph, locations=False))
    assert_ranks_agree(graph, [Lowered(g) for g in rank_graphs(graph, 3)])


def test_one_rank_has_everything() -> None:
    graph = feed_forward(silu)
    assert Shard().run(graph, CPU).graph is graph


def test_lines_that_are_split() -> None:
    fired, = sharded(feed_forward(silu)).fired
    assert fired.loc == line_of("down", __file__)


class Wide(Layer):
    """Two pairs of linears in Layers of their own, and one that stays whole."""

    signature = "x[batch, tokens, 16] -> y[batch, tokens, 16]"

    class Half(Layer):
        signature = "x[batch, tokens, 16] -> y[batch, tokens, 24]"

        def __init__(self) -> None:
            self.w = Param(24, 16)

        def forward(self, x: Value) -> Value:
            y: Value = linear(x, self.w)
            return y

    def __init__(self) -> None:
        self.gate, self.up, self.down = Wide.Half(), Wide.Half(), Param(16, 24)

    def forward(self, x: Value) -> Value:
        y: Value = x + linear(silu(self.gate(x)) * self.up(x), self.down)
        return y


class Outer(Layer):
    signature = "x[batch, tokens, 16] -> y[batch, tokens, 16]"

    def __init__(self) -> None:
        self.wide = Wide()

    def forward(self, x: Value) -> Value:
        y: Value = self.wide(x)
        return y


def test_pairs_over_layers_in_a_layer() -> None:
    graph = trace(Outer())
    assert_ranks_agree(graph, [Lowered(g) for g in rank_graphs(graph, 2)])


def test_experts_stay_whole() -> None:
    graph = trace(mixtral.Mixtral(mixtral.Config(48, 16, 1, 4, 2, 4, 24, experts=4)))
    assert_ranks_agree(graph, [Lowered(g) for g in rank_graphs(graph, 2)])


@pytest.mark.parametrize(("changes", "ranks", "message"), [
    ({"heads": 9, "kv_heads": 3}, 2, "9 heads of attention cannot be split over 2 ranks"),
    ({"heads": 12, "kv_heads": 3}, 2, "3 kv heads can be neither split over 2 ranks nor shared"),
    ({"ffn": 26}, 4, "an axis of 26 cannot be split over 4 ranks"),
])
def test_sizes_that_do_not_divide(changes: dict[str, int], ranks: int, message: str) -> None:
    graph = trace(llama.Llama(replace(SMALL, **changes)))
    with pytest.raises(GraphError, match=message) as caught:
        Shard(0, ranks).run(graph, CPU)
    assert caught.value.loc is not None
    assert Path(caught.value.loc.file).name == "llama.py"
    assert "a number of ranks that divides" in caught.value.hint


def test_a_vocabulary_that_does_not_divide_stays_whole() -> None:
    graph = trace(llama.Llama(replace(SMALL, vocab=49)))
    result = sharded(graph)
    assert [m.reason for m in result.missed] == [
        "every rank has the whole weight: 2 ranks do not divide 49 rows"] * 2
    assert_ranks_agree(graph, [Lowered(g) for g in rank_graphs(graph, 2)])


def normed(x: Value) -> Value:
    y: Value = rms_norm(x, leaf("w", 6, kind="param"), eps=1e-5)
    return y


def summed(x: Value) -> Value:
    return x / (1.0 + reduce_sum(x * x))


@pytest.mark.parametrize(("middle", "reason"), [
    (normed, r"mul at test_passes_shard.py:\d+ reads it whole"),
    (summed, r"mul at test_passes_shard.py:\d+ reads it whole"),
    (softmax, r"reduce_\w+ at test_passes_shard.py:\d+ reads it whole"),
    (lambda x: mul(x, leaf("y", TOKENS, 6)), "y is an input, which every rank has whole"),
    (lambda x: x[..., 2:] * x[..., :4], "a slice takes a part of the axis"),
])
def test_what_stays_whole(middle: Callable[[Value], Value], reason: str) -> None:
    x = leaf("x", TOKENS, 4)
    made = middle(linear(x, leaf("up", 6, 4, kind="param")))
    width = made.shape[-1]
    y = x + linear(made, leaf("down", 4, width, kind="param"))
    with pytest.raises(GraphError, match=f"nothing to split over 2 ranks: .*{reason}") as caught:
        Shard(0, 2).run(graph_of(y), CPU)
    assert caught.value.loc is not None
    assert Path(caught.value.loc.file) == Path(__file__)


def test_a_value_that_is_read_elsewhere_stays_whole() -> None:
    x = leaf("x", TOKENS, 4)
    h = silu(linear(x, leaf("up", 6, 4, kind="param")))
    y = x + linear(h, leaf("down", 4, 6, kind="param"))
    with pytest.raises(GraphError, match="it is a result"):
        Shard(0, 2).run(graph_of(y, h), CPU)
    with pytest.raises(GraphError, match=r"reduce_sum at .* reads it whole"):
        Shard(0, 2).run(graph_of(y + reduce_sum(h)), CPU)


class Peeking(Layer):
    """Attention whose keys something else reads too."""

    signature = "x[batch, tokens, 16], positions[batch, tokens]:i32 -> y[batch, tokens, 16]"

    def __init__(self) -> None:
        self.wq, self.wk, self.wo = (Param(16, 16) for _ in range(3))
        self.kv = KVCache(4, 4)

    def forward(self, x: Value, positions: Value) -> Value:
        q, k = (split_heads(linear(x, w), 4) for w in (self.wq, self.wk))
        kv = self.kv.append(k, k, positions)
        attended = attention(q, kv.k, kv.v, positions)
        y: Value = linear(merge_heads(attended), self.wo) + reduce_sum(merge_heads(k))
        return y


def test_keys_that_are_read_elsewhere_stay_whole() -> None:
    with pytest.raises(GraphError, match="nothing to split"):
        Shard(0, 2).run(trace(Peeking()), CPU)


@pytest.mark.parametrize(("rank", "ranks"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_that_is_none(rank: int, ranks: int) -> None:
    with pytest.raises(GraphError, match="no such rank"):
        Shard(rank, ranks).run(feed_forward(silu), CPU)


def test_verify_takes_a_graph_of_one_process() -> None:
    with pytest.raises(GraphError, match="one rank alone cannot be compared"):
        run_pipeline(feed_forward(silu), CPU, {"shard": {"rank": "0", "ranks": "2"}}, verify=True)


def test_wrong_collectives() -> None:
    x, ids = leaf("x", TOKENS, 4), leaf("ids", 3, dtype="i32")
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: all_reduce(x, rank=2, ranks=2), "rank is 2 of 2"),
        (lambda: all_reduce(ids, rank=0, ranks=2), "wanted floats"),
        (lambda: all_gather(x, rank=0, ranks=2, axis=2), "no axis 2"),
    ]
    for call, message in wrong:
        with pytest.raises(GraphError, match=message):
            call()


def test_one_rank_alone_has_no_sum() -> None:
    x = leaf("x", 2, 3)
    graph = graph_of(all_reduce(x, rank=0, ranks=2))
    given = {"x": torch.ones(2, 3)}
    with pytest.raises(GraphError, match="rank 0 alone has nothing from the other 1"):
        run(graph, given, {})
    with pytest.raises(GraphError, match="is that of rank 0 of 2, wanted 1 of 2"):
        run_ranks([graph, graph], given, [{}, {}])
    other = graph_of(all_reduce(x, rank=1, ranks=2))
    assert all(bool((r[0] == 2).all()) for r in run_ranks([graph, other], given, [{}, {}]))


def test_axes_of_reshapes() -> None:
    batch = Dim("batch")
    cases: list[tuple[tuple[Any, ...], tuple[Any, ...], int, int | None]] = [
        ((batch, 4, 8), (batch, 32), 1, 1), ((batch, 32), (batch, 4, 8), 1, 1),
        ((batch, 4, 8), (batch, 32), 2, None), ((batch, 2, 3, 4), (batch, 6, 4), 1, 1),
        ((batch, 2, 3, 4), (batch, 6, 4), 2, None), ((batch, 1, 4), (batch, 4), 2, 1),
        ((batch, 6, 4), (batch, 2, 3, 4), 1, 1), ((4, batch, 2), (4, batch, 2), 2, 2),
        ((3, 4), (4, 3), 0, 0),
    ]
    for new, old, axis, wanted in cases:
        assert same_axis(new, old, axis) == wanted, (new, old, axis)
    assert TensorType((batch,), "f32").shape == (batch,)
