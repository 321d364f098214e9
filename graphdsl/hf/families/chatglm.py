"""ChatGLM2, ChatGLM3 and GLM-4 in config.json, as their own code writes it."""

from __future__ import annotations

from graphdsl.errors import GraphError
from graphdsl.hf.family import Family, family_of, want
from graphdsl.hf.fields import Fields
from graphdsl.hf.rope import linear_scaling
from graphdsl.models.chatglm import ChatGLM2, Config, weight_names
from graphdsl.ops.position import Scaling

THETA = 10000.0
VOCAB = 65024
"""The vocabulary of ChatGLM2 and ChatGLM3; GLM-4 has a larger one."""


def read(fields: Fields) -> Family:
    """model_type chatglm. Raises GraphError for the first ChatGLM, and for variants whose maths
    differs."""
    _refuse_variants(fields)
    head_dim, vocab = fields.integer("kv_channels", 128), fields.integer("padded_vocab_size")
    want(head_dim % 4 == 0, str(fields.path), f"'kv_channels' is {head_dim}", "a multiple of 4")
    theta, scaling = _rope(fields, vocab)
    config = Config(
        vocab=vocab,
        hidden=fields.integer("hidden_size"),
        layers=fields.integer("num_layers"),
        heads=fields.integer("num_attention_heads"),
        kv_heads=fields.integer("multi_query_group_num", 1),
        head_dim=head_dim,
        ffn=fields.integer("ffn_hidden_size"),
        eps=fields.number("layernorm_epsilon", 1e-5),
        theta=theta,
        scaling=scaling,
        qkv_bias=fields.flag("add_qkv_bias", False),
        tied=fields.flag("tie_word_embeddings", False),
    )
    return family_of(fields.path, ChatGLM2, config, weight_names,
                     fields.integer("seq_length", 2048))


def _refuse_variants(fields: Fields) -> None:
    for key in ("position_encoding_2d", "inner_hidden_size", "pre_seq_len"):
        if fields.has(key):
            raise GraphError(f"{fields.path}: {key!r} is given; supported: ChatGLM2 and later,"
                             " without a trained prefix")
    fields.only("rmsnorm", True, "RMS norms")
    fields.only("post_layer_norm", True, "a norm after the last layer")
    fields.only("multi_query_attention", True, "heads that share keys and values in groups")
    fields.only("apply_residual_connection_post_layernorm", False, "residuals from before the norm")
    fields.only("add_bias_linear", False, "no biases but those of query_key_value")
    fields.only("fp32_residual_connection", False, "residuals of the model's dtype")
    fields.only("quantization_bit", 0, "weights that are not quantised")


def _rope(fields: Fields, vocab: int) -> tuple[float, Scaling]:
    """theta and the scaling. ChatGLM2 divides positions by rope_ratio, its successors multiply the
    base of the angles by it: a ratio other than 1 is read where the file says which one it is."""
    ratio, name = fields.number("rope_ratio", 1.0), fields.text("_name_or_path", "").lower()
    want(ratio > 0, str(fields.path), f"'rope_ratio' is {ratio}", "above 0")
    if ratio == 1.0:
        return THETA, ()
    if vocab != VOCAB or "chatglm3" in name:
        return THETA * ratio, ()
    if "chatglm2" in name:
        return THETA, linear_scaling(str(fields.path), ratio)
    raise GraphError(f"{fields.path}: 'rope_ratio' is {ratio:g}, which means one thing in ChatGLM2"
                     " and another in ChatGLM3, and the file does not say which one it is",
                     hint="put chatglm2 or chatglm3 into '_name_or_path'")
