"""The families of models that are read from Hugging Face folders, by the model_type that
config.json names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from graphdsl.hf.families import chatglm, gemma, glm, gpt2, llama, mixtral, qwen
from graphdsl.hf.family import Family
from graphdsl.hf.fields import Fields

READERS: Mapping[str, Callable[[Fields], Family]] = {
    "llama": llama.read,
    "mistral": llama.read_mistral,
    "qwen2": qwen.read_qwen2,
    "qwen3": qwen.read_qwen3,
    "gemma3_text": gemma.read,
    "mixtral": mixtral.read,
    "gpt2": gpt2.read,
    "glm": glm.read,
    "glm4": glm.read_glm4,
    "chatglm": chatglm.read,
}
"""How config.json is read to a Family. A reader raises GraphError, naming the file, what was found
and what is supported, for whatever would change the maths and is not supported."""

HINTS = {
    "bert": "it is an encoder, which writes no text: graphdsl.models.bert has its layers",
    "gemma3": "it takes images too; the models of text alone, 270M and 1B, have gemma3_text",
}
"""What is said of some other families."""
