"""GLM-4 in config.json: `glm`, and `glm4` with norms on both sides."""

from __future__ import annotations

from graphdsl.hf.family import Family, family_of, want
from graphdsl.hf.fields import Fields
from graphdsl.hf.rope import read_rope
from graphdsl.models.glm import Config, Glm, weight_names

EOS = (151329, 151336, 151338)  # what GlmConfig of transformers takes when the file does not say


def read(fields: Fields) -> Family:
    """model_type glm. Raises GraphError for activations other than silu and for kinds of rope
    scaling that are not supported."""
    return _read(fields, sandwich=False)


def read_glm4(fields: Fields) -> Family:
    """model_type glm4 (GLM-4-0414), which also normalises what attention and feed-forward add."""
    return _read(fields, sandwich=True)


def _read(fields: Fields, sandwich: bool) -> Family:
    fields.choice("hidden_act", ("silu", "swish"), "silu")
    max_positions = fields.integer("max_position_embeddings", 131072)
    rope = read_rope(fields, max_positions, partial=0.5)
    head_dim = fields.integer("head_dim", 128)
    rotary_dim = int(head_dim * rope.partial)
    fits = rotary_dim >= 2 and rotary_dim % 2 == 0
    want(fits, str(fields.path), f"rope turns {rotary_dim} of {head_dim} channels of a head",
         "an even number above 0")
    config = Config(
        vocab=fields.integer("vocab_size", 151552),
        hidden=fields.integer("hidden_size", 4096),
        layers=fields.integer("num_hidden_layers", 40),
        heads=fields.integer("num_attention_heads", 32),
        kv_heads=fields.integer("num_key_value_heads", 2),
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        ffn=fields.integer("intermediate_size", 13696),
        eps=fields.number("rms_norm_eps", 1.5625e-7),
        theta=rope.theta,
        scaling=rope.scaling,
        qkv_bias=fields.flag("attention_bias", True),
        sandwich=sandwich,
        tied=fields.flag("tie_word_embeddings", False),
    )
    return family_of(fields.path, Glm, config, weight_names, max_positions, EOS)
