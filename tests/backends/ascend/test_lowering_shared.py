"""Layers that are not rolled share the graphs that are equal."""

from __future__ import annotations

from dataclasses import replace

from lowercase import LLAMA, program

from graphdsl import Layer, Param, Value
from graphdsl.backends.ascend.atb import Graph, Program
from graphdsl.backends.ascend.checks import check_program
from graphdsl.backends.ascend.lowering_text import graph_text
from graphdsl.models import llama
from graphdsl.ops import linear

UNROLLED = {"roll": {"min_turns": "99"}}


def _llama(layers: int) -> Program:
    return program(llama.Llama(replace(LLAMA, layers=layers)), options=UNROLLED)


def _graphs(made: Program) -> list[Graph]:
    return list(dict.fromkeys(g for phase in made.phases for g in phase.graphs))


def test_the_graphs_of_a_model_are_as_many_however_many_layers_there_are() -> None:
    made = _llama(6)
    check_program(made, "910b")
    assert [run.graph.name for run in made.phases[1].runs] == [
        "Llama_begin", "Llama_layers_0_decode", *["Llama_layers_decode"] * 4,
        "Llama_layers_5_decode", "Llama_end"]
    assert len(_graphs(made)) == len(_graphs(_llama(9)))


def test_a_shared_graph_names_no_layer() -> None:
    (shared,) = (g for g in _graphs(_llama(4)) if g.name == "Llama_layers_decode")
    body = graph_text(shared)
    assert "layers.* <- MergeLinears" in body
    assert not any(f"layers{by}{i}" in body for by in "._" for i in range(4))
    names = {tensor.name for tensor in shared.tensors}
    assert {"layers_wo", "layers_kv_k", "concat", "concat_2", "lengths"} <= names
    assert len(names) == len(shared.tensors)


def test_runs_of_a_shared_graph_have_tensors_of_their_own() -> None:
    runs = [run for run in _llama(5).phases[0].runs if run.graph.name == "Llama_layers_prefill"]
    assert [run.bound[run.graph.inputs.index(next(
        t for t in run.graph.inputs if t.name == "layers_wo"))] for run in runs] == [
            "layers.1.wo", "layers.2.wo", "layers.3.wo"]


class One(Layer):
    """A product."""

    signature = "x[batch, tokens, hidden] -> y[batch, tokens, hidden]"

    def __init__(self, config: llama.Config = LLAMA) -> None:
        self.config, self.w = config, Param(64, 64)

    def forward(self, x: Value) -> Value:
        y: Value = linear(x, self.w)
        return y


class Other(One):
    """The same product, in another line."""

    def forward(self, x: Value) -> Value:
        y: Value = linear(x, self.w)
        return y


class Two(Layer):
    """Layers in a list."""

    signature = One.signature

    def __init__(self, *layers: Layer) -> None:
        self.config, self.layers = LLAMA, list(layers)

    def forward(self, x: Value) -> Value:
        for layer in self.layers:
            x = layer(x)
        return x


def test_graphs_of_other_lines_are_not_shared() -> None:
    same, other = (_graphs(program(Two(One(), layer), options=UNROLLED))
                   for layer in (One(), Other()))
    assert [g.name for g in same] == ["Two_layers"]
    assert [g.name for g in other] == ["Two_layers_0", "Two_layers_1"]
    assert "layers.1" in graph_text(other[1])
