"""The JSON of ATB's set_param against what a layer was built with."""

from __future__ import annotations

import pytest

import graphdsl
from graphdsl.borders.atb_param import check_param
from graphdsl.errors import GraphError
from graphdsl.ir import Graph
from graphdsl.models import glm, llama

SIZES = {"hidden": 64, "heads": 4, "kv_heads": 2, "ffn": 96}
LLAMA = llama.Config(**SIZES, head_dim=16, eps=1e-6)


@pytest.fixture(scope="module")
def layer() -> Graph:
    return graphdsl.trace(llama.LlamaLayer(LLAMA), "f16")


@pytest.mark.parametrize("text", [
    "{}", '{"headNum": 4, "kvHeadNum": 2, "dk": 16, "headDim": 16, "qkScale": 0.25}',
    '{"rmsNormEps": 9.99999997475e-07}', '{"epsilon": 1e-6, "rank": 0, "rankSize": 1}',
    '{"rotaryCoeff": 2}',
])
def test_what_was_built(layer: Graph, text: str) -> None:
    check_param("layer", layer, text)


def test_pairs_are_counted_by_their_channels() -> None:
    turned = graphdsl.trace(glm.GlmLayer(glm.Config(**SIZES, head_dim=32, rotary_dim=16)), "f16")
    check_param("glm", turned, '{"rotaryCoeff": 16}')


@pytest.mark.parametrize(("text", "message"), [
    ('{"headNum": 8}', r"set_param: headNum is 8, but the layer was built with 4(?s:.)*config"),
    ('{"headNum": "4"}', 'headNum is "4", but the layer was built with 4'),
    ('{"rank": true}', "rank is true, but the layer was built with 0"),
    ('{"rankSize": 2}', "rankSize is 2, but the layer was built with 1"),
    ('{"rmsNormEps": 1e-5}', "rmsNormEps is 1e-05, but the layer was built with 1e-06"),
    ('{"model": "llama"}', r"model is nothing that the layer can be compared in(?s:.)*known: head"),
    ("[1]", r"set_param: \[1\](?s:.)*wanted a JSON object"),
    ("{", r"set_param: Expecting .*(?s:.)*wanted a JSON object"),
])
def test_what_was_not(layer: Graph, text: str, message: str) -> None:
    with pytest.raises(GraphError, match=f"layer: .*{message}"):
        check_param("layer", layer, text)


def test_a_layer_without_rope_has_no_coefficient() -> None:
    class Plain(graphdsl.Layer):
        signature = "x[batch, tokens, hidden] -> y[batch, tokens, hidden]"

        def __init__(self, config: llama.Config = LLAMA) -> None:
            self.config = config
            self.w = graphdsl.Param(config.hidden, config.hidden)

        def forward(self, x: graphdsl.Value) -> graphdsl.Value:
            return x @ self.w

    with pytest.raises(GraphError, match="nothing that rotaryCoeff speaks of"):
        check_param("Plain", graphdsl.trace(Plain(), "f16"), '{"rotaryCoeff": 2}')
