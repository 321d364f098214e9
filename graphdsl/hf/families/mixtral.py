"""Mixtral in config.json."""

from __future__ import annotations

from graphdsl.hf.families.common import read_head_dim, read_window
from graphdsl.hf.family import Family, family_of, want
from graphdsl.hf.fields import Fields
from graphdsl.hf.rope import read_rope
from graphdsl.models.mixtral import Config, Mixtral, weight_names

EOS = (2,)  # what MixtralConfig of transformers takes when the file does not say
MOST_EXPERTS = 4096  # a larger number comes from a damaged file


def read(fields: Fields) -> Family:
    """model_type mixtral. Raises GraphError for activations other than silu."""
    fields.choice("hidden_act", ("silu", "swish"), "silu")
    max_positions = fields.integer("max_position_embeddings", 131072)
    config = _config(fields, max_positions)
    file = str(fields.path)
    want(1 <= config.experts <= MOST_EXPERTS, file, f"'num_local_experts' is {config.experts}",
         f"1 to {MOST_EXPERTS}")
    want(1 <= config.chosen <= config.experts, file, f"'num_experts_per_tok' is {config.chosen}",
         f"1 to the {config.experts} experts")
    return family_of(fields.path, Mixtral, config, weight_names, max_positions, EOS)


def _config(fields: Fields, max_positions: int) -> Config:
    rope = read_rope(fields, max_positions, theta=1e6)
    heads = fields.integer("num_attention_heads")
    given = "num_key_value_heads" in fields.values  # null: as many as heads
    return Config(
        vocab=fields.integer("vocab_size"),
        hidden=fields.integer("hidden_size"),
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", heads if given else 8),
        head_dim=read_head_dim(fields),
        ffn=fields.integer("intermediate_size"),
        eps=fields.number("rms_norm_eps", 1e-5),
        theta=rope.theta,
        scaling=rope.scaling,
        window=read_window(fields, 0),
        experts=fields.integer("num_local_experts", 8),
        chosen=fields.integer("num_experts_per_tok", 2),
        tied=fields.flag("tie_word_embeddings", False),
    )
