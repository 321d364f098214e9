"""Whole Layers and Models through the pipeline, and what the runner promises."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from passcase import CPU, PLAIN, WHOLE, assert_same, graph_of, leaf, names
from random_layers import DecoderLayer, DecoderModel, ModelShape, Shape

from graphdsl.ir import Dim, Graph, Layout, Node
from graphdsl.layer import Layer, Model, Param, trace
from graphdsl.models.llama import Config, Llama
from graphdsl.op import constant_of
from graphdsl.ops.linear import linear
from graphdsl.ops.math import add, tanh
from graphdsl.passes.base import CheckFailed, Result, Target
from graphdsl.passes.memory import ordered
from graphdsl.passes.pipeline import PIPELINE, Lowered, run_pipeline
from graphdsl.passes.roll import longest_run
from graphdsl.passes.samples import reference_outputs, samples
from graphdsl.passes.verify import problem_of
from graphdsl.printer import text
from graphdsl.reference import error_of

SMALL = Config(vocab=29, hidden=16, layers=3, heads=4, kv_heads=2, head_dim=4, ffn=24)
UNROLLED = {"roll": {"min_turns": "1000"}}
SHAPE = Shape(hidden=16, heads=2, kv_heads=1, head_dim=4, ffn=8)

CALLS = {"matmul_nt", "matmul", "attention", "kv_append", "concat", "take_rows", "gather",
         "embedding", "expert_linear", "topk", "argmax"}


def all_nodes(graph: Graph) -> list[Node]:
    """The nodes of a graph and of the bodies of its repeats and matmuls with prologues."""
    outer = ("repeat", "matmul_prologue")
    inner = [n for r in graph.nodes if r.name in outer and r.body for n in all_nodes(r.body)]
    return [*graph.nodes, *inner]


@pytest.mark.parametrize("options", [{}, UNROLLED], ids=["rolled", "unrolled"])
@pytest.mark.parametrize("config", [
    SMALL, replace(SMALL, tied=True), replace(SMALL, embeddings=True),
    replace(SMALL, hidden_states=True), replace(SMALL, layers=1)],
    ids=["plain", "tied", "embeddings", "hidden", "one"])
def test_llama(config: Config, options: Any) -> None:
    graph = trace(Llama(config), "f32")
    lowered = run_pipeline(graph, CPU, options, verify=True)
    assert_same(graph, lowered, seed=1)
    rolled = config.layers > 1 and not options and not config.hidden_states
    assert ("repeat" in names(lowered.graph)) == rolled


@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_llama_of_all_lengths(tokens: int) -> None:
    graph = trace(Llama(SMALL), "bf16")
    lowered = run_pipeline(graph, CPU)
    given = samples(graph, seed=tokens, dims={"tokens": tokens, "batch": 3})
    wanted = reference_outputs(graph, given)
    found = reference_outputs(lowered.graph, given, lowered.recipes)
    assert max(map(error_of, found, wanted)) < 1e-9


def test_lowered_graph_holds_what_a_backend_can_plan() -> None:
    lowered = run_pipeline(trace(Llama(SMALL), "bf16"), CPU)
    for node in all_nodes(lowered.graph):
        known = (node.op.kind == "view" or node.name in CALLS | CPU.takes
                 or node.name in ("loop", "matmul_epilogue", "matmul_prologue", "repeat"))
        assert known, node.name
        if node.name == "loop":
            assert node.body is not None
            assert {n.op.kind for n in node.body.nodes} <= {"pointwise", "reduce"}
        if node.name == "matmul_prologue":
            assert node.body is not None
            loop, matmul = node.body.nodes
            assert loop.name == "loop"
            assert matmul.name in ("matmul_nt", "matmul_epilogue")
        if node.name == "matmul_epilogue":
            assert node.body is not None
            matmuls = [n for n in node.body.nodes if n.name == "matmul_nt"]
            assert 1 <= len(matmuls) <= CPU.epilogue_matmuls
            assert len({n.inputs[0] for n in matmuls}) == 1
            assert {n.op.kind for n in node.body.nodes if n not in matmuls} == {"pointwise"}
            assert {v.shape for v in node.body.outputs} == {matmuls[0].out_types[0].shape}
    for recipe in lowered.recipes.values():
        assert not recipe.inputs
        assert len(recipe.outputs) == 1
        assert all(n.body is None for n in recipe.nodes)


def test_what_fires_in_a_layer() -> None:
    lowered = run_pipeline(trace(Llama(SMALL), "bf16"), CPU)
    fired = Counter(f.rule for report in lowered.report for f in report.fired)
    assert fired == {"Roll": 1, "AddRMSNorm": 1, "SiluMul": 1, "RopeAppend": 1, "MergeLinears": 1,
                     "Hoist": 1, "Fold": 4, "KVLayout": 6, "MatmulEpilogue": 4, "Loop": 4,
                     "MatmulPrologue": 3}
    body = next(n.body for n in lowered.graph.nodes if n.name == "repeat")
    assert body is not None
    assert Counter(names(body)) == {
        "matmul_prologue": 2, "split": 1, "reshape": 4, "rope_append": 1, "attention": 1,
        "matmul_epilogue": 2}


@pytest.mark.parametrize("target", [WHOLE, PLAIN], ids=lambda t: t.name)
def test_targets_without_loops_keep_kernels(target: Target) -> None:
    graph = trace(Llama(SMALL), "f32")
    lowered = run_pipeline(graph, target)
    assert_same(graph, lowered)
    ops = {n.name for n in all_nodes(lowered.graph)}
    assert not ops & {"loop", "matmul_epilogue", "matmul_prologue"}
    assert (ops >= {"rms_norm", "add_rms_norm", "swiglu", "rope_append"}) == (target is WHOLE)


def test_an_unrolled_model_of_80_layers() -> None:
    graph = trace(Llama(replace(SMALL, layers=80)), "f32")
    lowered = run_pipeline(graph, CPU, UNROLLED)
    assert max(report.nodes_before for report in lowered.report) > 1000
    fired = Counter(f.rule for report in lowered.report for f in report.fired)
    assert fired["AddRMSNorm"] == 80 + 79
    assert fired["RopeAppend"] == fired["SiluMul"] == fired["MergeLinears"] == 80


def test_period_of_several_layers() -> None:
    window, everything = replace(SHAPE, window=2), SHAPE
    layers = (window, window, everything) * 2 + (window,)
    graph = trace(DecoderModel(ModelShape(layers, 9)))
    lowered = run_pipeline(graph, CPU)
    repeat = next(n for n in lowered.graph.nodes if n.name == "repeat")
    assert repeat.attr["turns"] == 2
    assert repeat.body is not None
    assert len(repeat.body.state) == 6
    assert names(lowered.graph).count("attention") == 1
    assert_same(graph, lowered)


@pytest.mark.parametrize(("keys", "run"), [
    ("aaaa", (1, 4)), ("abab", (2, 2)), ("aab", (1, 2)), ("abc", (1, 1)), ("aabaab", (3, 2)),
    ("a", (1, 1)), ("ab", (1, 1)), ("wwwwwgwwwwwg", (6, 2))])
def test_longest_run(keys: str, run: tuple[int, int]) -> None:
    assert longest_run(keys, 0, 2) == run


@dataclass(frozen=True)
class Width:
    hidden: int = 8


class Inner(Layer):
    signature: ClassVar[str] = "x[batch, tokens, hidden] -> y[batch, tokens, hidden]"

    def __init__(self, config: Width = Width()) -> None:
        self.config = config
        self.w = Param(config.hidden, config.hidden)

    def forward(self, x: Any) -> Any:
        return x + tanh(linear(x, self.w))


class Outer(Layer):
    """Layers inside of a Layer, in a row."""

    signature: ClassVar[str] = Inner.signature

    def __init__(self, config: Width = Width()) -> None:
        self.config = config
        self.inner = [Inner(config) for _ in range(3)]

    def forward(self, x: Any) -> Any:
        for layer in self.inner:
            x = layer(x)
        return tanh(x)


class Nested(Model):
    signature: ClassVar[str] = Inner.signature

    def __init__(self, config: Width, outer: int) -> None:
        self.config = config
        self.layers = [Outer(config) for _ in range(outer)]

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("outer", [1, 2])
def test_layers_in_layers(outer: int) -> None:
    """The outermost run is rolled, and there is no repeat inside of a repeat."""
    graph = trace(Nested(Width(), outer))
    lowered = run_pipeline(graph, CPU)
    assert_same(graph, lowered)
    repeats = [n for n in all_nodes(lowered.graph) if n.name == "repeat"]
    assert [n.attr["turns"] for n in repeats] == [3 if outer == 1 else 2]
    assert repeats[0].scope == ("layers.0.inner.*" if outer == 1 else "layers.*")


class Twice(Model):
    """One Layer, so one state, two times."""

    signature: ClassVar[str] = DecoderLayer.signature.replace("hidden", "16")

    def __init__(self) -> None:
        self.layer = DecoderLayer(SHAPE)

    def forward(self, x: Any, positions: Any) -> Any:
        return self.layer(self.layer(x, positions), positions)


def test_state_that_two_turns_share_is_not_rolled() -> None:
    graph = trace(Twice())
    lowered = run_pipeline(graph, CPU)
    assert "repeat" not in names(lowered.graph)
    assert_same(graph, lowered)


def test_kv_layout_is_in_every_type() -> None:
    graph = trace(Llama(SMALL), "f32")
    for options, order in (({}, "bnsd"), ({"kv_layout": {"order": "bsnd"}}, "bsnd")):
        lowered = run_pipeline(graph, CPU, options)
        states = [v.type for v in (*lowered.graph.state, *lowered.graph.new_state)]
        assert {t.layout for t in states} == {Layout(order)}
        body = next(n.body for n in lowered.graph.nodes if n.name == "repeat")
        assert body is not None
        assert {v.type.layout for v in body.new_state} == {Layout(order)}


def test_order_respects_state() -> None:
    """Every node comes after what it reads, every writer after the readers of the old value."""
    lowered = run_pipeline(trace(Llama(SMALL), "f32"), CPU, UNROLLED)
    order = {n: i for i, n in enumerate(ordered(lowered.graph))}
    assert set(order) == set(lowered.graph.nodes)
    assert all(order[v.node] < order[n] for n in order for v in n.inputs if v.node)


def test_observer_and_reports() -> None:
    seen: list[tuple[str, int]] = []
    lowered = run_pipeline(trace(Llama(SMALL)), CPU,
                           observe=lambda name, graph: seen.append((name, len(graph.nodes))))
    assert [name for name, _ in seen] == [each.name for each in PIPELINE]
    assert [r.name for r in lowered.report] == [each.name for each in PIPELINE]
    assert seen[-1][1] == len(lowered.graph.nodes)
    assert all(r.seconds >= 0 for r in lowered.report)


def test_reports_name_lines() -> None:
    lowered = run_pipeline(trace(Llama(SMALL)), CPU)
    fired = [f for r in lowered.report for f in r.fired if f.rule == "AddRMSNorm"]
    assert str(fired[0]).startswith("AddRMSNorm at llama.py:")
    assert fired[0].scope == "layers.*"


TOKENS = Dim("tokens")


@dataclass(frozen=True)
class Broken:
    """Replaces tanh(x) + y by x + y."""

    name: ClassVar[str] = "broken"

    def run(self, graph: Graph, target: Target) -> Result:
        x, y = graph.inputs
        return Result(replace(graph, outputs=(add(x, y),)))


@dataclass(frozen=True)
class IllFormed:
    """Returns an output that is not of this graph."""

    name: ClassVar[str] = "ill-formed"

    def run(self, graph: Graph, target: Target) -> Result:
        return Result(replace(graph, outputs=(tanh(leaf("stray", TOKENS, 8)),)))


def broken_graph() -> Graph:
    return graph_of(tanh(leaf("x", TOKENS, 8)) + leaf("y", TOKENS, 8))


def test_a_wrong_pass_is_named() -> None:
    with pytest.raises(CheckFailed, match="pass broken changes the numbers: max relative error"):
        run_pipeline(broken_graph(), CPU, verify=True, passes=(Broken(),))
    run_pipeline(broken_graph(), CPU, passes=(Broken(),))


def test_an_ill_formed_graph_is_refused() -> None:
    with pytest.raises(CheckFailed, match="after pass ill-formed: stray is neither a leaf"):
        run_pipeline(broken_graph(), CPU, passes=(IllFormed(),))


def test_verify_finds_wrong_types() -> None:
    graph = broken_graph()
    node = graph.outputs[0].node
    assert node is not None
    wrong = replace(node, out_types=(replace(node.out_types[0], dtype="bf16"),))
    assert "where it infers f32[tokens, 8]" in problem_of(replace(graph, outputs=wrong.outputs))
    short = replace(node, inputs=(node.inputs[0], leaf("z", 3)))
    assert problem_of(replace(graph, inputs=(*graph.inputs, short.inputs[1]),
                          outputs=short.outputs)).startswith("f32[tokens, 8] and f32[3]")
    assert problem_of(replace(graph, inputs=graph.inputs * 2)) == "test has a leaf twice"
    assert not problem_of(graph)


def test_numbers_alone_are_loops() -> None:
    """Constants and sizes, without an input; and outputs that nothing computes."""
    x = leaf("x", TOKENS, 8)
    graph = graph_of(x * constant_of(TOKENS, "f32"), tanh(constant_of(TOKENS, "f32")),
                     constant_of(3.0, "f32"), x)
    lowered = run_pipeline(graph, CPU, verify=True)
    assert names(lowered.graph) == ["loop"] * 3
    assert [len(n.inputs) for n in lowered.graph.nodes] == [1, 0, 0]


def test_empty_pipeline() -> None:
    graph = broken_graph()
    assert run_pipeline(graph, CPU, passes=()) == Lowered(graph)


def test_a_graph_that_holds_a_repeat_already_is_read_again() -> None:
    """The lowered graph goes through all passes once more, and stays as it is."""
    lowered = run_pipeline(trace(Llama(SMALL), "bf16"), CPU)
    again = run_pipeline(lowered.graph, CPU)
    assert any(n.name == "repeat" for n in again.graph.nodes)
    assert text(again.graph) == text(lowered.graph)
