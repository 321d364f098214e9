"""A decoder layer is traced alone as it is in its model: its config says how wide angles are."""

from __future__ import annotations

import pytest

from graphdsl.layer import Layer, trace
from graphdsl.models import chatglm, gemma, glm, llama, mixtral, qwen

SIZES = {"hidden": 16, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 24}


@pytest.mark.parametrize(("layer", "angles"), [
    (llama.LlamaLayer(llama.Config(**SIZES)), 4),
    (qwen.Qwen2Layer(qwen.Config(**SIZES)), 4),
    (qwen.Qwen3Layer(qwen.Config(**SIZES)), 4),
    (mixtral.MixtralLayer(mixtral.Config(**SIZES)), 4),
    (gemma.GemmaLayer(gemma.Config(**SIZES)), 4),
    (glm.GlmLayer(glm.Config(**SIZES, rotary_dim=4)), 2),
    (chatglm.ChatGLM2Layer(chatglm.Config(**SIZES)), 2),
], ids=lambda case: type(case).__name__ if isinstance(case, Layer) else str(case))
def test_a_layer_is_traced_alone(layer: Layer, angles: int) -> None:
    graph = trace(layer)
    assert [v.name for v in graph.inputs] == ["x", "positions", "cos", "sin"]
    assert str(graph.inputs[2].type) == f"f32[batch, tokens, {angles}]"
