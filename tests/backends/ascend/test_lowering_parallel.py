"""The graphs of one rank of several: what a sum over ranks becomes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lowercase import LLAMA, graph, ops, program

from graphdsl.backends.ascend.lowering import program_of
from graphdsl.backends.ascend.render import render_graph
from graphdsl.errors import GraphError
from graphdsl.ir import Graph as Traced
from graphdsl.ir import TensorType, Value
from graphdsl.layer import BATCH
from graphdsl.models.llama import Llama, LlamaLayer
from graphdsl.ops import all_gather, all_reduce, linear

TP = {"shard": {"rank": "1", "ranks": "2"}}


def test_a_linear_and_its_sum_are_one_operation() -> None:
    made = graph(program(LlamaLayer(LLAMA), options=TP), "decode")
    assert ops(made).count("LinearParallel") == 2
    assert "AllReduce" not in ops(made)
    text = render_graph(made)
    assert text.count("atb::infer::LinearParallelParam param{};") == 2
    assert "param.rank = 1;\n    param.rankSize = 2;" in text


def test_others_are_linears_and_sums() -> None:
    """A 310p has no LinearParallel, which takes a power of 2 ranks besides."""
    for soc, ranks, config in (("310p", "2", LLAMA),
                               ("910b", "3", replace(LLAMA, heads=6, kv_heads=3, ffn=96))):
        options = {"shard": {"rank": "0", "ranks": ranks}}
        made = graph(program(LlamaLayer(config), soc=soc, options=options), "decode")
        assert ops(made).count("AllReduce") == 2
        assert "LinearParallel" not in ops(made)
        assert f"param.rankSize = {ranks};" in render_graph(made)


def test_tables_of_tokens_stay_whole() -> None:
    made = program(Llama(LLAMA), options=TP)
    embed, = (t for t in made.ports if t.name == "embed")
    assert embed.shape == (48, 64)


def test_a_sum_of_a_layer_of_ones_own() -> None:
    """What is written by hand may be read elsewhere: the linear is one of its own."""
    x = Value(TensorType((BATCH, 4, 64), "f16"), name="x")
    w = Value(TensorType((64, 64), "f16"), name="w", kind="param")
    y = all_reduce(linear(x, w), rank=0, ranks=2)
    made = program(Traced("Own", (x,), (w,), (), (y,)))
    assert ops(made.phases[0].graphs[0]) == ["Linear", "AllReduce"]
    gathered = Traced("Own", (x,), (), (), (all_gather(x, rank=0, ranks=2),))
    with pytest.raises(GraphError, match="all_gather: ATB has no such operation"):
        program_of(gathered, "910b")
