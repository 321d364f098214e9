"""Ranks that are run together in the reference give what the whole graph gives."""

from __future__ import annotations

import pytest
from shardcase import assert_ranks_agree, lowered_ranks, rank_graphs

from graphdsl.ir import Graph
from graphdsl.layer import Layer, trace
from graphdsl.models import chatglm, gemma, glm, gpt2, llama, qwen
from graphdsl.ops.collectives import collectives_of
from graphdsl.passes.pipeline import Lowered

SIZES = {"vocab": 48, "hidden": 16, "layers": 2, "heads": 8, "kv_heads": 2, "head_dim": 4,
         "ffn": 24}
MODELS: dict[str, Layer] = {
    "llama": llama.Llama(llama.Config(**SIZES)),
    "tied": llama.Llama(llama.Config(**SIZES, tied=True)),
    "qwen2": qwen.Qwen2(qwen.Config(**SIZES)),
    "qwen3": qwen.Qwen3(qwen.Config(**SIZES)),
    "mistral": llama.Llama(llama.Config(**SIZES, window=3)),
    "glm4": glm.Glm(glm.Config(**SIZES, rotary_dim=2, sandwich=True)),
    "chatglm2": chatglm.ChatGLM2(chatglm.Config(**SIZES)),
    "gemma3": gemma.Gemma(gemma.Config(**SIZES, window=3)),
    "gpt2": gpt2.GPT2(gpt2.Config(48, 32, 16, 2, 4, 24)),
}


def counts(graph: Graph) -> list[str]:
    return [n.name for n in collectives_of(graph)]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_models_of_every_family(name: str, ranks: int) -> None:
    graph = trace(MODELS[name])
    sharded = rank_graphs(graph, ranks)
    assert_ranks_agree(graph, [Lowered(g) for g in sharded])
    two_a_layer = ["all_reduce"] * 4
    assert counts(sharded[0]) == ["all_reduce", *two_a_layer, "all_gather"]


@pytest.mark.parametrize("name", ["llama", "chatglm2", "gpt2"])
def test_after_the_whole_pipeline(name: str) -> None:
    graph = trace(MODELS[name])
    assert_ranks_agree(graph, lowered_ranks(graph, 2))
