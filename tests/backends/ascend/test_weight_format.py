"""Weights in tiles (NZ): which, why others are not, and how the format is seen."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from lowercase import GPT2, LLAMA

from graphdsl import Layer, Param, Value
from graphdsl.backend import find_backend
from graphdsl.backends.ascend.lowering import program_of
from graphdsl.backends.ascend.target import target
from graphdsl.backends.ascend.weight_format import WeightFormat
from graphdsl.builder import BuildOptions, build_graph
from graphdsl.errors import GraphError
from graphdsl.ir import Graph, TensorType
from graphdsl.layer import trace
from graphdsl.manifest import Identity, manifest_of
from graphdsl.models import gpt2, llama
from graphdsl.ops import embedding, linear
from graphdsl.passes.pipeline import Lowered, PassReport, run_pipeline
from graphdsl.printer import text
from graphdsl.reference import TOLERANCE, error_of
from graphdsl.runtime.operator import Operator

NZ = {"weight_format": {"format": "nz"}}


@dataclass(frozen=True)
class Sizes:
    """What a linear makes."""

    columns: int = 32


class Head(Layer):
    """A linear, whose weight an embedding may read too."""

    signature = "x[batch, tokens, 32], ids[batch, tokens]:i32 -> y[batch, tokens, columns]"

    def __init__(self, columns: int = 32, tied: bool = False) -> None:
        self.config, self.tied, self.w = Sizes(columns), tied, Param(columns, 32)

    def forward(self, x: Value, ids: Value) -> Value:
        y: Value = linear(x + embedding(ids, self.w) if self.tied else x, self.w)
        return y


class Turns(Layer):
    """Equal layers, which are rolled; the weight of the second is a table of embeddings too."""

    signature = "x[batch, tokens, 32], ids[batch, tokens]:i32 -> y[batch, tokens, 32]"

    def __init__(self) -> None:
        self.layers = [Head() for _ in range(3)]

    def forward(self, x: Value, ids: Value) -> Value:
        x = linear(x, self.layers[0].w) + embedding(ids, self.layers[1].w)
        for layer in self.layers:
            x = layer(x, ids)
        return x


def _lowered(layer: Layer, options: dict[str, dict[str, str]] | None = NZ,
             soc: str = "910b", dtype: str = "f16") -> Lowered:
    return run_pipeline(trace(layer, dtype), target(soc), options)


def _report(lowered: Lowered) -> PassReport:
    (report,) = (r for r in lowered.report if r.name == "weight_format")
    return report


def _formats(graph: Graph) -> dict[str, str]:
    return {p.name: p.type.format for p in graph.params}


@pytest.mark.parametrize(("soc", "usual", "other"), [("910b", "", "nz"), ("310p", "nz", "nd")])
def test_weights_are_nd_on_910b_and_nz_on_310p_unless_asked_for(soc: str, usual: str,
                                                                other: str) -> None:
    assert _formats(_lowered(Head(), {}, soc).graph) == {"w": usual}
    chosen = _lowered(Head(), {"weight_format": {"format": other}}, soc)
    assert _formats(chosen.graph) == {"w": "" if usual else "nz"}


def test_another_format_is_refused() -> None:
    with pytest.raises(GraphError, match="weight_format:format=nc: 'nc' is not a choice") as caught:
        _lowered(Head(), {"weight_format": {"format": "nc"}})
    assert caught.value.hint == "choices: nd, nz"


def test_the_format_is_seen_in_the_graph_the_program_and_the_manifest() -> None:
    lowered = _lowered(Head(48))
    assert "param %w : f16[48, 32]@nz" in text(lowered.graph)
    program = program_of(lowered.graph, "910b")
    (port,) = (p for p in program.ports if p.name == "w")
    assert (port.format, port.shape) == ("nz", (1, 2, 48, 16))
    backend = find_backend("ascend", "910b")
    made = manifest_of(backend.plan(lowered), trace(Head(48), "f16"),
                       Identity("ascend", "f16", ("910b",)))
    (param,) = made["params"]
    assert (param["format"], param["packed"], param["shape"]) == ("nz", True, [48, 32])
    assert "format" not in made["weights"][0]


def test_all_linears_of_a_model_and_nothing_else_are_in_tiles() -> None:
    lowered = _lowered(llama.Llama(LLAMA))
    tiled = {name for name, form in _formats(lowered.graph).items() if form}
    assert {"head", "concat.0", "layers.1.wo", "layers.2.w_down"} <= tiled
    assert not any("norm" in name or name in ("embed", "angles.cos.0") for name in tiled)
    assert {(f.rule, f.scope) for f in _report(lowered).fired} == {
        ("WeightFormat", "layers.*"), ("WeightFormat", "")}
    assert not _report(lowered).missed


def test_the_same_numbers_and_the_same_graph_a_second_time() -> None:
    options = {"angle_table": {"rows": "64"}}
    lowered = run_pipeline(trace(llama.Llama(LLAMA), "f16"), target("310p"), options, verify=True)
    assert WeightFormat("nz").run(lowered.graph, target("310p")).graph is lowered.graph


def test_a_graph_that_was_given_is_not_changed() -> None:
    graph = _lowered(Head(), {}).graph
    before = text(graph)
    assert WeightFormat("nz").run(graph, target("910b")).fired
    assert text(graph) == before


def _missed(lowered: Lowered) -> list[str]:
    """The reasons why weights stayed as they are; all are at lines of this file."""
    missed = _report(lowered).missed
    assert {m.loc.file for m in missed if m.loc} == {__file__}
    assert {m.rule for m in missed} == {"WeightFormat"}
    return [m.reason for m in missed]


@pytest.mark.parametrize(("layer", "reason"), [
    (Head(tied=True), r"w is f16\[32, 32\] and embedding at .*py:\d+ reads it too"),
    (Head(columns=24), r"w is f16\[24, 32\], wanted sizes that are multiples of 16"),
    (Head(columns=1), r"w is f16\[1, 32\], wanted sizes that are multiples of 16")])
def test_weights_that_stay_as_they_are_and_why(layer: Layer, reason: str) -> None:
    lowered = _lowered(layer)
    assert _formats(lowered.graph) == {"w": ""}
    (found,) = _missed(lowered)
    assert re.fullmatch(reason, found), found


def test_turns_of_a_repeat_have_one_format() -> None:
    lowered = _lowered(Turns())
    assert [n.name for n in lowered.graph.nodes].count("repeat") == 1
    assert set(_formats(lowered.graph).values()) == {""}
    first, second = _missed(lowered)
    assert first.startswith("layers.1.w is f16[32, 32] and embedding at")
    assert second == ("layers.0.w is read in a turn of a repeat, another turn of which reads "
                      "layers.1.w, which stays as it is")


def test_weights_of_f32_and_weights_that_are_results_stay() -> None:
    def leaf(name: str, dtype: str, kind: str = "") -> Value:
        return Value(TensorType((32, 32), dtype), name=name, kind=kind)

    narrow, wide = leaf("narrow", "f16", "param"), leaf("wide", "f32", "param")
    x, y = leaf("x", "f16"), leaf("y", "f32")
    graph = Graph("test", (x, y), (narrow, wide), (),
                  (linear(x, narrow), linear(y, wide), narrow))
    result = WeightFormat("nz").run(graph, target("910b"))
    assert result.graph is graph
    assert [m.reason for m in result.missed] == [
        "narrow is f16[32, 32] and a result too", "wide is f32[32, 32]: tiles have 16 bits"]


def test_tied_heads_stay_as_they_are() -> None:
    lowered = _lowered(llama.Llama(replace(LLAMA, tied=True)), soc="310p")
    formats = _formats(lowered.graph)
    assert (formats["embed"], formats["layers.0.wo"]) == ("", "nz")
    (missed,) = _report(lowered).missed
    assert "embed is f16[48, 64] and embedding at" in missed.reason


def test_biases_stay_as_they_are() -> None:
    formats = _formats(_lowered(gpt2.GPT2(GPT2), soc="310p").graph)
    assert {name.partition(".")[0] for name, form in formats.items() if form} == {"transpose"}
    assert formats["layers.1.c_attn_bias"] == formats["position_table"] == ""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_library_packs_rows_into_tiles_and_multiplies_by_them(emulation: Path) -> None:
    options = BuildOptions(cache=emulation, backend="ascend", dtype="bf16", passes=NZ,
                           environment=os.environ)
    operator = Operator(build_graph(trace(Head(48), "bf16"), options).path)
    w, x = torch.randn(48, 32).bfloat16(), torch.randn(2, 3, 32).bfloat16()
    operator.bind({"w": w})
    assert torch.equal(operator.weights[0].view(torch.bfloat16).view(2, 48, 16),
                       torch.stack([w[:, :16], w[:, 16:]]))
    found = operator(x, torch.zeros(2, 3).int())
    assert error_of(found, x.float() @ w.float().T) < TOLERANCE["bf16"]
