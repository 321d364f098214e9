"""Llama and Mistral in config.json."""

from __future__ import annotations

from graphdsl.hf.families.common import read_head_dim, read_window
from graphdsl.hf.family import Family, family_of
from graphdsl.hf.fields import Fields
from graphdsl.hf.rope import read_rope
from graphdsl.models.llama import Config, Llama, weight_names

EOS = (2,)  # what LlamaConfig and MistralConfig of transformers take when the file does not say


def read(fields: Fields) -> Family:
    """model_type llama. Raises GraphError for biases and activations other than silu."""
    for key in ("attention_bias", "mlp_bias"):
        fields.only(key, False, "Llama models without biases")
    max_positions = fields.integer("max_position_embeddings", 2048)
    config = config_of(fields, max_positions)
    return family_of(fields.path, Llama, config, weight_names, max_positions, EOS)


def read_mistral(fields: Fields) -> Family:
    """model_type mistral: a Llama with a window. Raises GraphError for activations other than
    silu."""
    max_positions = fields.integer("max_position_embeddings", 131072)
    config = config_of(fields, max_positions, window=read_window(fields, 4096))
    return family_of(fields.path, Llama, config, weight_names, max_positions, EOS)


def config_of(fields: Fields, max_positions: int, window: int = 0,
              head_dim: int | None = None) -> Config:
    """The sizes and constants, in the names that Llama and its descendants share; `head_dim` stands
    for a missing one. Raises GraphError for activations other than silu."""
    fields.choice("hidden_act", ("silu", "swish"), "silu")
    rope = read_rope(fields, max_positions)
    heads = fields.integer("num_attention_heads")
    return Config(
        vocab=fields.integer("vocab_size"),
        hidden=fields.integer("hidden_size"),
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=read_head_dim(fields, head_dim),
        ffn=fields.integer("intermediate_size"),
        eps=fields.number("rms_norm_eps", 1e-6),
        theta=rope.theta,
        scaling=rope.scaling,
        window=window,
        tied=fields.flag("tie_word_embeddings", False),
    )
