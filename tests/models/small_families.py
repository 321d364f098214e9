"""Every family with a few layers, at sizes that a reader can follow."""

from __future__ import annotations

from collections.abc import Mapping

from graphdsl.layer import Model
from graphdsl.models import bert, chatglm, gemma, glm, gpt2, llama, mixtral, qwen

LLAMA = {"vocab": 64, "hidden": 32, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 8,
         "ffn": 48}
"""What most families have in common."""
PLAIN = {"vocab": 64, "hidden": 32, "layers": 3, "heads": 4, "ffn": 48, "max_positions": 128}

SMALL: Mapping[str, Model] = {
    "llama": llama.Llama(llama.Config(**LLAMA)),
    "qwen2": qwen.Qwen2(qwen.Config(**LLAMA)),
    "qwen3": qwen.Qwen3(qwen.Config(**LLAMA)),
    "gpt2": gpt2.GPT2(gpt2.Config(**PLAIN)),
    "glm4": glm.Glm(glm.Config(**LLAMA, rotary_dim=4, sandwich=True)),
    "chatglm2": chatglm.ChatGLM2(chatglm.Config(**LLAMA)),
    "gemma3": gemma.Gemma(gemma.Config(**LLAMA, window=16)),
    "bert": bert.Bert(bert.Config(**PLAIN)),
    "mixtral": mixtral.Mixtral(mixtral.Config(**LLAMA, experts=4)),
}
