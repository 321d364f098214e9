"""Gemma 3 in config.json: the text models (model_type gemma3_text)."""

from __future__ import annotations

from graphdsl.errors import GraphError
from graphdsl.hf.families.common import FULL, SLIDING, sliding_layers
from graphdsl.hf.family import Family, family_of, want
from graphdsl.hf.fields import Fields
from graphdsl.hf.rope import read_scaling
from graphdsl.models.gemma import Config, Gemma, weight_names
from graphdsl.ops.position import Scaling

EOS = (1,)  # what Gemma3TextConfig of transformers takes when the file does not say


def read(fields: Fields) -> Family:
    """model_type gemma3_text. Raises GraphError for biases, other activations, attention in both
    directions and a soft cap of the scores, which transformers' Gemma 3 reads and does not use."""
    fields.only("attention_bias", False, "Gemma 3 models without biases")
    fields.only("use_bidirectional_attention", False, "causal models")
    fields.choice("hidden_activation", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    if fields.has("attn_logit_softcapping"):
        raise GraphError(f"{fields.path}: 'attn_logit_softcapping' is "
                         f"{fields.number('attn_logit_softcapping')}; supported: null")
    max_positions = fields.integer("max_position_embeddings", 131072)
    return family_of(fields.path, Gemma, _config(fields, max_positions), weight_names,
                     max_positions, EOS)


def _config(fields: Fields, max_positions: int) -> Config:
    scalar = fields.number("query_pre_attn_scalar", 256.0)
    window = fields.integer("sliding_window", 4096)
    softcap = fields.number("final_logit_softcapping", 0.0)
    file = str(fields.path)
    want(scalar > 0, file, f"'query_pre_attn_scalar' is {scalar}", "above 0")
    want(window >= 1, file, f"'sliding_window' is {window}", "at least 1")
    want(softcap >= 0, file, f"'final_logit_softcapping' is {softcap}", "0 or more")
    theta, scaling, local_theta = _rope(fields, max_positions)
    return Config(
        vocab=fields.integer("vocab_size"),
        hidden=fields.integer("hidden_size"),
        layers=fields.integer("num_hidden_layers"),
        heads=fields.integer("num_attention_heads"),
        kv_heads=fields.integer("num_key_value_heads", 4),
        head_dim=fields.integer("head_dim", 256),
        ffn=fields.integer("intermediate_size"),
        eps=fields.number("rms_norm_eps", 1e-6),
        scale=scalar ** -0.5,
        window=window,
        global_layers=_global_layers(fields),
        local_theta=local_theta,
        theta=theta,
        scaling=scaling,
        softcap=softcap,
        tied=fields.flag("tie_word_embeddings", True),
    )


def _global_layers(fields: Fields) -> tuple[int, ...]:
    """Those without a window: where layer_types is missing, the last of every
    sliding_window_pattern layers."""
    pattern = fields.integer("sliding_window_pattern", 6)
    want(pattern >= 1, str(fields.path), f"'sliding_window_pattern' is {pattern}", "at least 1")
    sliding = set(sliding_layers(fields, lambda layer: (layer + 1) % pattern != 0))
    return tuple(i for i in range(fields.integer("num_hidden_layers")) if i not in sliding)


def _rope(fields: Fields, max_positions: int) -> tuple[float, Scaling, float]:
    """theta and scaling of the global layers, and theta of the local ones: rope_parameters has an
    object for each kind of layer in the new spelling, in the old one all stand apart."""
    new = fields.mapping("rope_parameters")
    for key in new.values:
        want(key in (SLIDING, FULL), str(fields.path), f"'rope_parameters' has {key!r}",
             f"an object {SLIDING!r} and an object {FULL!r}")
    ours = new.mapping(FULL) if new.values else fields.mapping("rope_scaling")
    local = new.mapping(SLIDING)
    local.choice("rope_type", ("default",), "default")
    local_theta = local.number("rope_theta", fields.number("rope_local_base_freq", 1e4))
    want(local_theta > 0, str(fields.path), f"rope theta of {SLIDING} is {local_theta}", "above 0")
    trained = ours.integer("original_max_position_embeddings", max_positions)
    theta = ours.number("rope_theta", fields.number("rope_theta", 1e6))
    return theta, read_scaling(ours, trained), local_theta
