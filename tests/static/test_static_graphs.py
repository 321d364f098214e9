"""What `static` makes of a graph: types, what it refuses, and that it computes the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from staticcase import LAYERS, LENGTH, LLAMA, MODELS, Dynamic, session_of, worst_of

import graphdsl
from graphdsl import KVCache, Layer, Param, Value, operation
from graphdsl.backend import find_backend
from graphdsl.errors import GraphError
from graphdsl.ir import Dim, Graph
from graphdsl.models.bert import Bert
from graphdsl.models.bert import Config as BertConfig
from graphdsl.models.llama import Config, LlamaLayer
from graphdsl.ops import (
    arange,
    attention,
    linear,
    matmul,
    merge_heads,
    softmax,
    split_heads,
    take_rows,
    transpose,
    where,
)
from graphdsl.passes.pipeline import run_pipeline
from graphdsl.passes.samples import samples
from graphdsl.passes.static import Static, static, static_parts
from graphdsl.passes.verify import problem_of
from graphdsl.printer import text
from graphdsl.reference import TOLERANCE, error_of, run
from graphdsl.sizes import terms

Golden = Callable[[str, str], None]
TOKENS = "x[batch, tokens, hidden], positions[batch, tokens]:i32"


def types(values: tuple[Value, ...]) -> list[str]:
    return [f"{v.name} {v.type}" for v in values]


def test_a_layer_takes_and_gives_fixed_sizes() -> None:
    made = static(LAYERS["llama"], length=256)
    assert (made.block.name, made.block_cache.name) == ("LlamaLayer_block",
                                                        "LlamaLayer_block_cache")
    assert types(made.block.inputs) == [
        "x f32[1, 256, 32]", "positions i32[1, 256]", "cos f32[1, 256, 4]", "sin f32[1, 256, 4]",
        "mask f32[1, 1, 256, 256]"]
    assert [str(v.type) for v in made.block.outputs] == ["f32[1, 256, 32]",
                                                         *["f32[1, 256, 2, 8]"] * 2]
    assert types(made.block_cache.inputs)[4:] == [
        "mask f32[1, 1, 1, 257]", "kv.k f32[1, 256, 2, 8]", "kv.v f32[1, 256, 2, 8]"]
    assert [str(v.type) for v in made.block_cache.outputs] == ["f32[1, 1, 32]",
                                                               *["f32[1, 256, 2, 8]"] * 2]


def test_append_gives_the_new_rows_alone() -> None:
    made = static(LAYERS["glm4"], 256, cache="append", dtype="bf16")
    assert [str(v.type) for v in made.block_cache.outputs] == ["bf16[1, 1, 32]",
                                                               *["bf16[1, 1, 2, 8]"] * 2]
    assert types(made.block_cache.inputs)[4:6] == ["mask bf16[1, 1, 1, 257]",
                                                   "kv.k bf16[1, 256, 2, 8]"]


@pytest.mark.parametrize("name", MODELS)
def test_no_size_is_symbolic_and_the_input_graph_stays(name: str) -> None:
    graph = graphdsl.trace(MODELS[name])
    before = text(graph)
    made = static(graph, LENGTH)
    assert text(graph) == before
    for part in (made.block, made.block_cache):
        assert problem_of(part) == ""
        assert not part.state
        assert not symbolic(part)


def symbolic(graph: Graph) -> list[Dim]:
    """The symbolic sizes of a graph and of the bodies of its nodes."""
    bodies = [n.body for n in graph.nodes if n.body is not None]
    values = (*graph.leaves, *(v for n in graph.nodes for v in n.outputs))
    own = [d for v in values for size in v.shape for d in terms(size)]
    return own + [d for body in bodies for d in symbolic(body)]


@pytest.mark.parametrize(("name", "tokens", "cache"), [
    *((name, 3, "shift") for name in MODELS), ("llama", 1, "shift"), ("llama", LENGTH, "shift"),
    ("llama", 1, "append"), ("glm4", 3, "append"), ("llama", LENGTH, "append")])
def test_logits_equal_those_of_the_dynamic_graph(name: str, tokens: int, cache: str) -> None:
    dynamic = Dynamic.of(MODELS[name])
    session = session_of(MODELS[name], dynamic.params, cache)
    assert worst_of(session, dynamic, tokens) <= TOLERANCE["f32"]


def test_a_window_of_the_length_leaves_nothing_out() -> None:
    layer = LlamaLayer(replace(LLAMA, window=LENGTH))
    made = static(layer, LENGTH, cache="append").block_cache
    attended = [node for node in made.nodes if node.name == "attention"]
    assert attended[0].attr["window"] == 0


@pytest.mark.parametrize("part", ["block", "block_cache"])
def test_passes_fire_as_for_the_dynamic_layer(part: str, golden: Golden) -> None:
    target = find_backend("cpu").target
    graph = Static(length=LENGTH, part=part).run(graphdsl.trace(LAYERS["llama"])).graph
    lowered = run_pipeline(graph, target, verify=True)
    dynamic = run_pipeline(graphdsl.trace(LAYERS["llama"]), target)
    # The rows are appended by the host, so rope is not merged with that.
    assert rules(dynamic) - rules(lowered) == {"RopeAppend", "KVLayout"}
    assert sum(n.name == "attention" for n in lowered.graph.nodes) == 1
    golden(f"passes/static_{part}.txt", f"{text(graph)}\n\n{text(lowered.graph)}")


def rules(lowered: Any) -> set[str]:
    return {fired.rule for report in lowered.report for fired in report.fired}


def test_it_is_a_pass_by_itself() -> None:
    target = find_backend("cpu").target
    graph = graphdsl.trace(LAYERS["llama"])
    chosen, = static_parts({"length": "8", "part": "block_cache", "cache": "append"}, target)
    lowered = run_pipeline(graph, target, passes=(chosen,))
    assert lowered.graph.name == "LlamaLayer_block_cache"
    both = static_parts({"length": "8"}, target)
    assert [each.part for each in both] == ["block", "block_cache"]
    assert static_parts({}, target) == ()


class Plain(Layer):
    """Attention over a cache, and what subclasses do to it."""

    signature = f"{TOKENS} -> y[batch, tokens, hidden]"
    config = LLAMA

    def __init__(self, config: Any = LLAMA) -> None:
        self.config = config
        self.w = Param(config.hidden, config.hidden)
        self.kv = KVCache(config.heads, config.head_dim)

    def forward(self, x: Value, positions: Value) -> Value:
        heads = split_heads(linear(x, self.w), self.config.heads)
        kv = self.kv.append(heads, heads, positions)
        return self.attended(heads, kv, positions)

    def attended(self, q: Value, kv: KVCache, positions: Value) -> Value:
        return merge_heads(attention(q, kv.k, kv.v, positions))


class InMaths(Plain):
    """Attention as maths, a part of it in an Operation of the user."""

    def attended(self, q: Value, kv: KVCache, positions: Value) -> Value:
        turned = (transpose(each, order=(0, 2, 1, 3)) for each in (q, kv.k, kv.v))
        q, k, v = turned
        seen = arange(size=kv.k.shape[1]) <= positions[:, None, :, None]
        weights = softmax(where(seen, scores(q, k) * self.config.head_dim ** -0.5, -1e9))
        return merge_heads(transpose(matmul(weights, v), order=(0, 2, 1, 3)))


@operation
def scores(q: Value, k: Value) -> Value:
    """q k^T."""
    made: Value = matmul(q, transpose(k, order=(0, 1, 3, 2)))
    return made


class OwnMask(Plain):
    def attended(self, q: Value, kv: KVCache, positions: Value) -> Value:
        seen = arange(size=kv.k.shape[1]) < 4
        return merge_heads(attention(q, kv.k, kv.v, positions, seen))


class NotCausal(Plain):
    def attended(self, q: Value, kv: KVCache, positions: Value) -> Value:
        return merge_heads(attention(q, kv.k, kv.v, causal=False))


class BySlots(Plain):
    def attended(self, q: Value, kv: KVCache, positions: Value) -> Value:
        return super().attended(q, kv, positions) + kv.k[:, :1, 0, :1]


class Unread(Plain):
    def attended(self, q: Value, kv: KVCache, positions: Value) -> Value:
        return merge_heads(attention(q, q, q))


class Twice(Plain):
    def attended(self, q: Value, kv: KVCache, positions: Value) -> Value:
        kv = kv.append(q, q, positions)
        return super().attended(q, kv, positions)


class Idle(Plain):
    def __init__(self, config: Any = LLAMA) -> None:
        super().__init__(config)
        self.other = KVCache(config.heads, config.head_dim)


class Pinned(Plain):
    def __init__(self, config: Any = LLAMA) -> None:
        super().__init__(config)
        self.kv = KVCache(config.heads, config.head_dim, layout="bnsd:paged/16")


class Moved(Plain):
    def forward(self, x: Value, positions: Value) -> Value:
        return super().forward(x, positions + 1)


class Returned(Plain):
    signature = f"{TOKENS} -> k[batch, slots, heads, head_dim]"

    def attended(self, q: Value, kv: KVCache, positions: Value) -> Value:
        return kv.k


class Masked(Plain):
    signature = f"{TOKENS}, mask[batch, tokens, hidden] -> y[batch, tokens, hidden]"

    def forward(self, x: Value, positions: Value, mask: Value) -> Value:  # type: ignore[override]
        return super().forward(x + mask, positions)


class Picks(Plain):
    """Rows that a user names, under a name of his own."""

    signature = f"{TOKENS}, chosen[batch, picks]:i32 -> y[batch, picks, hidden]"

    def forward(self, x: Value, positions: Value,  # type: ignore[override]
                chosen: Value) -> Value:
        picked: Value = take_rows(super().forward(x, positions), chosen)
        return picked


class OwnSize(Plain):
    signature = f"{TOKENS}, table[frames, hidden] -> y[batch, tokens, frames]"

    def forward(self, x: Value, positions: Value, table: Value) -> Value:  # type: ignore[override]
        made: Value = linear(super().forward(x, positions), table)
        return made


class FewTokens(Plain):
    dims: ClassVar[Mapping[str, tuple[int, int]]] = {"tokens": (1, 4)}


@dataclass(frozen=True)
class ManyConfig(Config):
    batch: int = 2


class ManyRows(Plain):
    def __init__(self) -> None:
        super().__init__(ManyConfig(**vars(LLAMA)))


class FixedTokens(Plain):
    signature = "x[batch, 4, hidden], positions[batch, 4]:i32 -> y[batch, 4, hidden]"


def test_attention_in_plain_maths_is_recognised() -> None:
    plain, maths = static(Plain(), LENGTH), static(InMaths(), LENGTH)
    params = samples(graphdsl.trace(Plain()), seed=0).params
    for ours, wanted in ((maths.block, plain.block), (maths.block_cache, plain.block_cache)):
        assert [n.name for n in ours.nodes].count("attention") == 1
        inputs = samples(wanted, seed=1).inputs
        for a, b in zip(run(ours, inputs, params), run(wanted, inputs, params), strict=True):
            assert error_of(a, b) <= TOLERANCE["f32"]


def test_rows_that_are_named_become_one() -> None:
    made = static(Picks(), LENGTH)
    assert types(made.block.inputs)[2] == "chosen i32[1, 1]"
    assert str(made.block.outputs[0].type) == "f32[1, 1, 32]"


@pytest.mark.parametrize(("layer", "message", "hint"), [
    (OwnMask(), "attention has a mask of its own", "leave the mask to the caller"),
    (NotCausal(), "attention is not causal by the positions of the append", "positions)"),
    (BySlots(), "slice reads a cache by its slots, which a static graph moves", "attention(q"),
    (Unread(), "attention reads what is no cache with this step's rows", "append first"),
    (Twice(), "nothing is appended to kv.k, or twice", "append all rows of a step at once"),
    (Idle(), "nothing is appended to other.k, or twice", "append all rows of a step at once"),
    (Pinned(), "kv.k is pinned to bnsd:paged/16", "leave the layout out"),
    (Moved(), "appended to by positions that are not the one input", "positions[batch, tokens]"),
    (Returned(), "a result is a cache, whose slots a static graph moves", "results by themselves"),
    (Masked(), "a leaf of it is called mask already", "rename it"),
    (OwnSize(), "OwnSize: frames is a size of its own", "a whole number in place of frames"),
    (FewTokens(), "length 8: FewTokens takes tokens of 1 to 4, not 8", ""),
    (ManyRows(), "ManyRows is for 2 sequences; a static graph is for one", "positions[batch"),
    (FixedTokens(), "positions is i32[batch, 4]: it has a fixed length already", "positions["),
    (Bert(BertConfig(vocab=64, hidden=32, layers=1, heads=4, ffn=48)),
     "Bert has no caches and no positions", "self.kv.append(k, v, positions)"),
])
def test_what_cannot_be_static_is_refused(layer: Layer, message: str, hint: str) -> None:
    with pytest.raises(GraphError) as caught:
        static(layer, LENGTH)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("layer", [OwnMask, NotCausal, Unread])
def test_refusals_name_the_line_of_the_attention(layer: type[Layer]) -> None:
    with pytest.raises(GraphError) as caught:
        static(layer(), LENGTH)
    assert caught.value.loc is not None
    assert caught.value.loc.file == __file__


def test_append_and_a_window_are_refused_together() -> None:
    with pytest.raises(GraphError, match="a window of 3, fewer than 8 tokens") as caught:
        static(MODELS["mistral"], LENGTH, cache="append")
    assert caught.value.hint == "cache shift keeps them in order"


@pytest.mark.parametrize("length", [0, -3, True, 2.5, "8"])
def test_lengths_that_are_none(length: Any) -> None:
    with pytest.raises(GraphError, match="wanted a whole number above 0"):
        static(LAYERS["llama"], length)


def test_caches_and_builds_that_are_none() -> None:
    with pytest.raises(GraphError, match="no cache 'ring'") as caught:
        static(LAYERS["llama"], LENGTH, cache="ring")
    assert caught.value.hint == "caches: shift, append"
    with pytest.raises(GraphError, match="static makes two graphs of one") as caught:
        graphdsl.build(LAYERS["llama"], passes={"static": {"length": 8}})
    assert "graphdsl.static(layer, length=256)" in caught.value.hint
