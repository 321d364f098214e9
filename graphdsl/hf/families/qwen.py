"""Qwen2 and Qwen3 in config.json."""

from __future__ import annotations

from graphdsl.hf.families.common import read_window, sliding_layers
from graphdsl.hf.families.llama import config_of
from graphdsl.hf.family import Family, family_of, want
from graphdsl.hf.fields import Fields
from graphdsl.models.qwen import Config, Qwen2, Qwen3, qwen2_names, qwen3_names

POSITIONS = 32768  # what the configs of transformers take when the file does not say
WINDOW, FIRST_SLIDING = 4096, 28  # likewise


def read_qwen2(fields: Fields) -> Family:
    """model_type qwen2. Raises GraphError for activations other than silu."""
    max_positions = fields.integer("max_position_embeddings", POSITIONS)
    return family_of(fields.path, Qwen2, _config(fields, max_positions), qwen2_names, max_positions)


def read_qwen3(fields: Fields) -> Family:
    """model_type qwen3. Raises GraphError for biases and activations other than silu."""
    fields.only("attention_bias", False, "Qwen3 models without biases")
    max_positions = fields.integer("max_position_embeddings", POSITIONS)
    config = _config(fields, max_positions, head_dim=128)
    return family_of(fields.path, Qwen3, config, qwen3_names, max_positions)


def _config(fields: Fields, max_positions: int, head_dim: int | None = None) -> Config:
    window = read_window(fields, WINDOW) if fields.flag("use_sliding_window", False) else 0
    first = fields.integer("max_window_layers", FIRST_SLIDING)
    sliding = sliding_layers(fields, lambda layer: window > 0 and layer >= first)
    want(window > 0 or not sliding, str(fields.path), "'layer_types' has sliding layers",
         "'use_sliding_window' and a 'sliding_window' for them")
    llama = config_of(fields, max_positions, head_dim=head_dim)
    return Config(**{**vars(llama), "window": window if sliding else 0, "sliding": sliding})
